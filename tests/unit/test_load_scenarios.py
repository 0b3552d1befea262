"""Load scenarios: arrivals, targets, tables, CSV files and plots, computed from records."""

import csv
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from load_tests.peers.report import draw, write_report
from load_tests.report import missed_targets, scenario_table, write_csv
from load_tests.request_log import DISCONNECTED, RequestLog, RequestRecord
from load_tests.scenarios import SCENARIOS
from tests.support.plots import check_readable

RECORDS = {
    "succeeded": RequestRecord(0, 0, "typical", 200, "", 0, decode_s=0.002, queue_s=0.003, device_s=0.004),
    "rejected": RequestRecord(0, 0, "typical", 429, "", 0, retry_after_s=1),
    "invalid": RequestRecord(0, 0, "bad", 415, "", 0),
    "disconnected": RequestRecord(0, 0, "disconnect", 0, DISCONNECTED, 0),
    "failed": RequestRecord(0, 0, "typical", 429, "", 0),
}
"""A record for each outcome; a 429 without Retry-After is a failure."""


def log_of(*outcomes: str, latency_s: float = 0.01, kind: str | None = None) -> RequestLog:
    """Return a log of one second whose requests had these outcomes."""
    records = [
        RECORDS[outcome]._replace(due_s=0.9 * number / len(outcomes), latency_s=latency_s)
        for number, outcome in enumerate(outcomes)
    ]
    if kind is not None:
        records = [record._replace(kind=kind) for record in records]
    return RequestLog.from_records(records, seconds=1)


@pytest.mark.parametrize(
    ("name", "seconds_at_capacity"),
    [("steady", 18), ("ramp", 36), ("burst", 15.8), ("mixed", 1.8), ("bad", 15), ("disconnects", 15)],
)
def test_scenario_has_its_number_of_requests_and_share_of_bad_ones(
    name: str, seconds_at_capacity: float
) -> None:
    """The number of requests follows the rate; bad images and disconnects are a fifth in their scenarios."""
    arrivals = list(SCENARIOS[name].arrivals(capacity_rps=1000, seed=1))
    assert len(arrivals) == pytest.approx(1000 * seconds_at_capacity, rel=0.05)
    kinds: Counter[str] = Counter(kind for _, kind in arrivals)
    special = {"bad": "bad", "disconnects": "disconnect"}.get(name)
    share = (kinds["bad"] + kinds["disconnect"]) / len(arrivals)
    assert share == pytest.approx(0.2 if special else 0, abs=0.01)
    assert special is None or kinds[special]


def test_bursts_have_twice_the_capacity() -> None:
    """In the two seconds of a burst the rate is twice the capacity, before it 30 %."""
    seconds = [second for second, _ in SCENARIOS["burst"].arrivals(capacity_rps=1000, seed=1)]
    assert sum(10 <= second < 12 for second in seconds) == pytest.approx(4000, rel=0.05)
    assert sum(8 <= second < 10 for second in seconds) == pytest.approx(600, rel=0.15)


def test_same_seed_repeats_the_arrivals() -> None:
    """A run can be repeated request by request."""
    first, second, other = (list(SCENARIOS["bad"].arrivals(50, seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_stretched_scenario_keeps_its_shape() -> None:
    """A scenario of another duration has the same rates at the same share of the time."""
    stretched = SCENARIOS["ramp"].stretched_to(4.5)
    assert stretched.seconds == 4.5
    assert stretched.rate_at(2.25) == pytest.approx(SCENARIOS["ramp"].rate_at(22.5))


def test_outcome_follows_from_kind_status_and_headers() -> None:
    """A bad image that gets a 200 failed; so did a request without a response."""
    assert list(log_of(*RECORDS).outcome) == list(RECORDS)
    assert list(log_of("succeeded", kind="bad").outcome) == ["failed"]
    assert list(log_of("invalid", kind="typical").outcome) == ["failed"]


@pytest.mark.parametrize(
    ("outcomes", "may_reject", "messages"),
    [
        (["succeeded", "invalid", "disconnected"], False, []),
        (["succeeded", "failed"], False, ["1 of 2 requests failed"]),
        (["succeeded", "failed"], True, ["1 of 2 requests failed"]),
        (["succeeded", "rejected"], False, ["1 of 2 requests were rejected"]),
        (["succeeded", "rejected"], True, []),
        (["rejected"], True, ["p99 is nan"]),
    ],
)
def test_failures_and_unexpected_rejections_miss_the_targets(
    outcomes: list[str], may_reject: bool, messages: list[str]
) -> None:
    """A failure always misses a target, a rejection only without overload; so does a run without success."""
    missed = missed_targets("steady", log_of(*outcomes), p99_ms=20, may_reject=may_reject)
    assert len(missed) == len(messages)
    assert all(message in line for message, line in zip(messages, missed, strict=True))


def test_p99_above_its_target_misses_it() -> None:
    """The p99 of the requests that succeeded is compared."""
    assert missed_targets("steady", log_of("succeeded", latency_s=0.021), p99_ms=20, may_reject=False)
    assert not missed_targets("steady", log_of("succeeded", latency_s=0.019), p99_ms=20, may_reject=False)


def test_responses_after_the_end_do_not_count_as_throughput() -> None:
    """Responses while the queue empties after the last request do not count."""
    for latency_s, expected_rate in ((0.01, 2), (0.6, 1)):
        log = log_of("succeeded", "succeeded", latency_s=latency_s)
        assert log.rate(log.has_outcome("succeeded")) == expected_rate


def test_csv_has_a_line_per_request(tmp_path: Path) -> None:
    """Times are in ms; a stage that the response does not report is empty."""
    write_csv(log_of("succeeded", "rejected"), tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["outcome"] == "succeeded"
    assert [float(first[f"{name}_ms"]) for name in ("latency", "decode", "queue", "device")] == [10, 2, 3, 4]
    assert (second["outcome"], second["kind"], second["decode_ms"]) == ("rejected", "typical", "")


def test_table_has_a_line_per_scenario() -> None:
    """The columns are rates, shares, percentiles and the stages of requests that succeeded."""
    table = scenario_table({"steady": log_of("succeeded", "rejected"), "empty": log_of()})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2] == ["steady", "2", "1", "50.0%", "0", "10", "10", "10", "2", "3", "4", "0"]
    assert rows[3][:5] == ["empty", "0", "0", "-", "0"]


def test_latency_of_no_request_is_nan() -> None:
    """Statistics of an empty selection do not raise."""
    log = log_of("rejected")
    assert math.isnan(log.latency(99, log.has_outcome("succeeded")))


def test_peers_are_compared_with_the_best_of_them(tmp_path: Path) -> None:
    """Ratios are to the best other server; int8 is compared with the best at default precision."""

    def row(table: str, server: str, rate: float) -> dict[str, Any]:
        runs = [{"rate": speed * rate} for speed in (0.5, 1.0, 1.1)]  # the machine's speed in each round
        return {"table": table, "server": server, "rate": rate, "p50_ms": 1.0, "p99_ms": 2.0, "runs": runs}

    rows = [
        row("default precision", "this service", 30.0),
        row("default precision", "one", 10.0),
        row("default precision", "other", 15.0),
        row("no model", "this service", 500.0),
        row("no model", "one", 250.0),
        row("int8", "this service", 60.0),
    ]
    table = write_report(rows, tmp_path)
    ratios = [line.split("|")[4].strip() for line in table.splitlines()[2:]]
    assert ratios == ["2.00", "0.67", "1.00", "2.00", "1.00", "4.00"]
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_round_without_a_success_of_the_best_other_server_has_no_ratio(tmp_path: Path) -> None:
    def row(server: str, *rates: float) -> dict[str, Any]:
        runs = [{"rate": rate} for rate in rates]
        return {"table": "no model", "server": server, "rate": 1.0, "p50_ms": 1, "p99_ms": 2, "runs": runs}

    table = write_report([row("this service", 30, 30), row("other", 0, 10)], tmp_path)
    assert [line.split("|")[4].strip() for line in table.splitlines()[2:]] == ["3.00", "1.00"]
    table = write_report([row("this service", 30, 30), row("other", 0, 0)], tmp_path)
    assert [line.split("|")[4].strip() for line in table.splitlines()[2:]] == ["", ""]


@pytest.mark.parametrize("rate", [0.0, 7.3, 59_200.0])
def test_plot_of_peers_is_readable(rate: float, tmp_path: Path) -> None:
    """The bar of int8 is in a panel whose title names int8, and is labeled so."""
    servers = ["this service", "a server with a name of many words", "other"]
    panels = ["default precision", "no model", "no model, 64 connections"]
    rows = [{"table": panel, "server": server, "rate": rate} for panel in panels for server in servers]
    rows.append({"table": "int8", "server": "this service", "rate": 2 * rate})
    for count, titles in ((1, panels[:1]), (9, panels), (10, ["default precision and int8", *panels[1:]])):
        figure = draw(rows[:count], tmp_path / "plot.png")
        check_readable(figure)
        assert [axes.get_title() for axes in figure.axes] == titles
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert ("this service, int8" in names) == (count == 10)
