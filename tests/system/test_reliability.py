"""The long tests themselves, in short: their clients, their counts and their judgement; never times."""

import asyncio
import math
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from load_tests import worst_case as largest
from load_tests.load_generator import Client, arrivals, get, post, run
from load_tests.overload import Overload, measured_peak, overload
from load_tests.plots import draw_overload, draw_soak
from load_tests.process_monitor import MonitoredRun, Sample
from load_tests.request_log import HUNG_UP, UNANSWERED, Record, Row, Verdict
from load_tests.service import ServiceFailed
from load_tests.soak import SHARES, Soak, median_slope, soak
from load_tests.worst_case import Body
from resnet_service.settings import Settings
from tests.support.server import Running, serving


@pytest.fixture(scope="module")
def narrow() -> Iterator[Running]:
    """A real server in which two images may wait."""
    with serving(Settings(model="bundled", max_queue=2)) as running:
        yield running


def kept(rows: Iterator[Verdict]) -> dict[str, bool]:
    return {row.promise: row.kept for row in rows}


def promise(rows: Iterator[Verdict], words: str) -> Verdict:
    [found] = [row for row in rows if words in row.promise]
    return found


def row(due_s: float, status: int, latency_s: float = 0.01, retry_after_s: float = math.nan) -> Row:
    return Row(due_s, 0.0, "typical", status, "", latency_s, retry_after_s)


def watched(rss_bytes: Sequence[float] = (100, 100, 100), every_s: float = 5) -> MonitoredRun:
    """Make a watch over a process with so much memory, whose probes were quick."""
    count = len(rss_bytes)
    quick = Record.of([row(0, 200, 0.001)], 10, 0)
    same = np.full(count, 5.0)
    return MonitoredRun(
        {"/healthz": quick, "/metrics": quick},
        np.arange(count, dtype=np.float64) * every_s,
        np.array(rss_bytes, dtype=np.float64),
        same,
        same,
    )


def overloaded(load: Sequence[Row], light: Sequence[Row], seen: MonitoredRun | None = None) -> Overload:
    """Make an overload of ten seconds, of a service that does one image a second in 0.1 s."""
    return Overload(
        10, 1.0, 0.1, 30.0, Record.of(load, 10, 0), Record.of(light, 1, 0), seen or watched([100] * 5)
    )


def test_arrivals_are_as_many_as_the_rate_says() -> None:
    """At random, the same for the same seed, or evenly."""
    assert len(list(arrivals(1000, 10, seed=1))) == pytest.approx(10_000, rel=0.05)
    assert list(arrivals(50, 1, seed=1)) == list(arrivals(50, 1, seed=1)) != list(arrivals(50, 1, seed=2))
    assert list(arrivals(4, 1, seed=None)) == [0, 0.25, 0.5, 0.75]


def test_an_overload_is_recorded_request_by_request(narrow: Running, jpeg: bytes, tmp_path: Path) -> None:
    """What was sent is answered or rejected, as the service itself counts, and every promise is judged."""
    result = overload(narrow.url, os.getpid(), [jpeg], factor=3, seconds=1, peak_s=0.5)
    load, light = result.load, result.light
    assert len(load) == len(list(arrivals(3 * result.peak_rps, 1, seed=0)))
    assert load.were(200).any()
    assert load.were(429).any()
    assert load.were(200, 429).all()
    assert light.were(200, 429).all()
    rejected = load.were(429).sum() + light.were(429).sum()
    assert narrow.metric("inference_rejected_total", reason="queue_full") == rejected
    judged = kept(result.rows())
    assert len(judged) == 10
    assert judged["every 429 has a Retry-After"]
    assert judged["nothing but 200 and 429"]
    for answers in result.watched.answers.values():
        assert answers.were(200).all()
    assert not math.isnan(result.retry_after_ratio)
    assert all(figure for _, figure in result.figures())
    draw_overload(result, "short", tmp_path / "overload.png")
    assert (tmp_path / "overload.png").read_bytes().startswith(b"\x89PNG")


def test_a_soak_has_every_kind_of_request(server: Running, tmp_path: Path) -> None:
    """Good images are classified, bad ones rejected, and who hangs up breaks nothing."""
    result = soak(server.url, os.getpid(), seconds=3, peak_s=0.5, share=0.3)
    assert len(result.load) == len(list(arrivals(0.3 * result.capacity_rps, 3, seed=0)))
    assert set(result.load.kind) == set(SHARES)
    counts = dict(result.outcomes())
    assert sum(sum(count.values()) for count in counts.values()) == len(result.load)
    assert set(counts["hang-up"]) == {HUNG_UP}
    assert set(counts["bad"]) == {"415", "422"}
    for kind in ("typical", "mixed", "batch"):
        assert set(counts[kind]) == {"200"}
    judged = kept(result.rows())
    assert len(judged) == 10
    for words in ("no answer is a 5xx", "no connection fails", "every good image is classified"):
        assert judged[words]
    assert judged["every bad one gets a 4xx"]
    assert all(figure for _, figure in result.figures())
    draw_soak(result, "short", tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_the_largest_are_sent_and_watched(server: Running, jpeg: bytes) -> None:
    """Each body is answered, /healthz is asked meanwhile, and a slow answer or a fault breaks a promise."""
    image = Body("image", "/predict", jpeg, "image/*", 200)
    nonsense = Body("nonsense", "/predict", b"nonsense", "image/*", 415)
    found = largest.largest(server.url, [image, nonsense])
    assert [(one.body, set(one.statuses), one.failures) for one in found] == [
        (image, {200}, 0),
        (nonsense, {415}, 0),
    ]
    assert all(one.slowest_ms > 0 and one.seconds > 0 for one in found)
    assert len(list(largest.figures(found))) == 2
    quick, rejected = (replace(one, slowest_ms=1.0) for one in found)
    assert all(kept(largest.rows([quick, rejected])).values())
    slow, wrong = replace(quick, slowest_ms=101.0), replace(rejected, statuses=[500, 415, 415])
    assert not any(kept(largest.rows([slow, wrong])).values())


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_what_is_not_answered_is_in_the_record(silent: str) -> None:
    """A request that is given up, one that finds no connection, and one whose client hangs up."""

    async def asked() -> Record:
        request = post(silent, b"body", "typical")
        async with Client(silent, most_connections=1) as client:
            await client.ask(request._replace(hang_up_after=10), 0.0)
            await client.follow([(0.1, request), (0.2, request)], patience_s=0)
            return client.record(1)

    assert list(run(asked()).error) == [HUNG_UP, UNANSWERED, "TooManyConnections"]


def test_nobody_there_is_an_error() -> None:
    """A rejected connection has its name in the record, and there is no peak to measure."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServiceFailed, match="ConnectionRefusedError"):
            run(measured_peak(url, [get(url, "/healthz")], connections=2, seconds=1))


def test_an_answer_in_pieces_is_read_and_its_connection_closed() -> None:
    """Wherever the network cuts it; and what is to be closed is not used again."""
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        for piece in (
            b"HTTP/1.1 429 Too",
            b" Many\r\nRetry-After: 7\r\nConnection: close\r\n",
            b"Content-Length: 2\r\n\r\n{",
            b"}",
        ):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def asked() -> list[Row]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            async with Client(url) as client:
                return [await client.ask(get(url, "/"), client.now_s) for _ in range(2)]

    assert [(row.status, row.retry_after_s) for row in run(asked())] == [(429, 7.0)] * 2
    assert connections == 2


def test_retry_after_is_compared_with_the_wait_of_the_next_accepted() -> None:
    """The median over the rejections; those after which nothing was accepted say nothing."""
    load = [row(0, 429, retry_after_s=4), row(1, 200, 2), row(2, 429, retry_after_s=9), row(3, 200, 3)]
    assert overloaded([*load, row(4, 429, retry_after_s=100)], []).retry_after_ratio == 2.5


def test_recovery_is_counted_from_the_end_of_the_overload() -> None:
    """Accepted again, then normal again, which may wait for the backlog and two seconds."""
    load = [row(9, 200, 4)]
    light = [row(10, 429), row(11, 200, 5), row(12, 200, 0.1), row(13, 200, 0.1)]
    result = overloaded(load, light)
    assert (result.backlog_s, result.accepted_again_s, result.normal_again_s) == (3, 1, 2)
    assert promise(result.rows(), "accepted 2 s").kept
    assert promise(result.rows(), "normal 2 s").kept
    never = overloaded(load, [row(10, 429)])
    assert never.accepted_again_s == never.normal_again_s == math.inf
    assert not promise(never.rows(), "accepted 2 s").kept


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ([row(0, 200)], "goodput"),
        ([row(0, 200, 31)], "deadline"),
        ([row(0, 429, 0.06, 1)], "p99 of rejections"),
        ([row(0, 429)], "Retry-After"),
        ([row(0, 504)], "nothing but"),
    ],
)
def test_a_broken_promise_is_named(load: list[Row], words: str) -> None:
    """Each by the requests that break it."""
    assert not promise(overloaded(load, []).rows(), words).kept


def test_a_growing_memory_is_seen() -> None:
    """After the first quarter, or 20 s, of an overload; by its slope in a soak."""
    grown = overloaded([], [], watched([50, 100, 100, 106]))
    assert not promise(grown.rows(), "memory").kept
    assert promise(overloaded([], [], watched([50, 100, 100, 104])).rows(), "memory").kept
    x = np.arange(3000.0)
    y = 2 * x
    y[::7] = 1e9
    assert median_slope(x, y) == pytest.approx(2)
    begin = Sample(0, 100, 5, 5)
    for growth, flat in ((0.0, True), (1.0, False)):
        seen = watched([1000 + growth * number for number in range(100)], every_s=1)
        result = Soak(1.0, Record.of([row(0, 200)], 100, 0), seen, begin, begin)
        assert promise(result.rows(), "memory").kept is flat
