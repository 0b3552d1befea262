"""The checks of the overload, soak, worst-case and slow-client tests, computed from records."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from load_tests import worst_case
from load_tests.health_prober import HealthProber
from load_tests.overload import OverloadResult
from load_tests.plots import draw_overload, draw_soak
from load_tests.process_monitor import MonitorLog, ProcessSample
from load_tests.report import Check, checks_table
from load_tests.request_log import RequestLog, RequestRecord
from load_tests.retry_storm import RetryStormResult
from load_tests.slow_clients import SlowClientsResult
from load_tests.soak import SoakResult
from load_tests.worst_case import WorstCase, WorstCaseResult
from tests.support.plots import check_readable


def record(
    due_s: float, status: int, latency_s: float = 0.01, retry_after_s: float = math.nan
) -> RequestRecord:
    return RequestRecord(due_s, 0.0, "typical", status, "", latency_s, retry_after_s)


def monitor_log(rss_bytes: Sequence[float] = (100,) * 5, interval_s: float = 5) -> MonitorLog:
    """Return the log of a process with these memory samples and quick responses to probes."""
    count = len(rss_bytes)
    probes = RequestLog.from_records([record(0, 200, 0.001)], 10)
    constant = np.full(count, 5.0)
    at_s = np.arange(count, dtype=np.float64) * interval_s
    memory = np.array(rss_bytes, dtype=np.float64)
    return MonitorLog({"/healthz": probes, "/metrics": probes}, at_s, memory, constant, constant)


def overload_result(
    load: Sequence[RequestRecord], light: Sequence[RequestRecord] = (), monitor: MonitorLog | None = None
) -> OverloadResult:
    """Return an overload of ten seconds, of a service that processes one image per second in 0.1 s."""
    logs = RequestLog.from_records(load, 10), RequestLog.from_records(light, 1)
    return OverloadResult(10, 1.0, 0.1, 30.0, *logs, monitor or monitor_log())


def check_of(checks: Iterable[Check], words: str) -> Check:
    [check] = [check for check in checks if words in check.guarantee]
    return check


def test_retry_after_is_compared_with_the_wait_of_the_next_accepted_request() -> None:
    """The ratio is a median over the rejections that are followed by an accepted request."""
    load = [
        record(0, 429, retry_after_s=4),
        record(1, 200, 2),
        record(2, 429, retry_after_s=9),
        record(3, 200, 3),
        record(4, 429, retry_after_s=100),
    ]
    assert overload_result(load).retry_after_ratio == 2.5


def test_recovery_is_measured_from_the_end_of_the_overload() -> None:
    """Requests are accepted again first; latency is normal once the backlog is processed."""
    load = [record(9, 200, 4)]
    light = [record(10, 429), record(11, 200, 5), record(12, 200, 0.1), record(13, 200, 0.1)]
    result = overload_result(load, light)
    assert (result.backlog_s, result.accepted_again_s, result.normal_again_s) == (3, 1, 2)
    assert check_of(result.checks(), "accepted within 2 s").passed
    assert check_of(result.checks(), "normal within 2 s").passed
    never = overload_result(load, [record(10, 429)])
    assert never.accepted_again_s == never.normal_again_s == math.inf
    assert not check_of(never.checks(), "accepted within 2 s").passed


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ([record(0, 200)], "goodput"),
        ([record(0, 200, 31)], "deadline"),
        ([record(0, 429, 0.06, 1)], "p99 of rejections"),
        ([record(0, 429)], "Retry-After"),
        ([record(0, 504)], "every status"),
    ],
)
def test_requests_that_violate_a_guarantee_fail_its_check(load: list[RequestRecord], words: str) -> None:
    """Each check depends on its own requests."""
    assert not check_of(overload_result(load).checks(), words).passed


def test_growing_memory_fails_the_check_of_an_overload() -> None:
    """Memory counts after the first quarter of the time, at most after 20 s."""
    for last, expected in ((106, False), (104, True)):
        result = overload_result([], monitor=monitor_log([50, 100, 100, last]))
        assert check_of(result.checks(), "memory").passed is expected


def test_growing_memory_fails_the_check_of_a_soak() -> None:
    """The plateau, the last third, may be above the time after the warm-up by less than 2 %."""
    before = ProcessSample(0, 100, 5, 5)
    log = RequestLog.from_records([record(0, 200)], 100)
    for growth, expected in ((0.0, True), (1.0, False)):
        monitor = monitor_log([1000 + growth * number for number in range(100)], interval_s=1)
        result = SoakResult(1.0, log, monitor, before, before)
        assert check_of(result.checks(), "memory").passed is expected


@pytest.mark.parametrize("count", [1, 500])
def test_plots_of_overload_and_soak_are_readable(count: int, tmp_path: Path) -> None:
    """With few and many requests and samples; logarithmic axes have at least two labels."""
    load = [record(9 * number / count, 200 if number % 3 else 429, 0.2, 1) for number in range(count)]
    monitor = monitor_log([1000.0 + number for number in range(count)], interval_s=9 / count)
    result = overload_result(load, [record(10, 200, 0.2)], monitor)
    soak = SoakResult(1.0, result.load, monitor, *[ProcessSample(0, 100, 5, 5)] * 2)
    for figure in (
        draw_overload(result, "resnet50\noverload", tmp_path / "plot.png"),
        draw_soak(soak, "resnet50\nsoak", tmp_path / "plot.png"),
    ):
        check_readable(figure)
        assert "resnet50" in figure.get_suptitle()
        for axes in figure.axes:
            low, high = axes.get_ylim()
            assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2


def test_plateau_of_memory_is_the_median_of_the_last_third() -> None:
    """A third of its samples may be arbitrarily wrong; it is reached with the first sample within 2 %."""
    memory = [900.0] * 10 + [985.0] + [1000.0] * 89
    memory[70:100:3] = [9000.0] * 10
    sample = ProcessSample(0, 100, 5, 5)
    log = RequestLog.from_records([record(0, 200)], 100)
    result = SoakResult(1.0, log, monitor_log(memory, interval_s=1), sample, sample)
    assert result.plateau_bytes == 1000
    assert result.plateau_at_s == 10
    assert dict(result.measurements())["plateau of memory"].endswith("after 0.2 min")


def test_worst_case_fails_for_a_slow_probe_or_an_unexpected_status() -> None:
    """Both checks pass only if every response has its status and every probe was quick."""
    image = WorstCase("image", "/predict", b"", "image/*", (200,))
    result = WorstCaseResult(image, [200, 200], 0.1, 1.0, 0)
    assert all(check.passed for check in worst_case.checks([result]))
    for bad in (replace(result, slowest_probe_ms=101.0), replace(result, failed_probes=1)):
        assert not check_of(worst_case.checks([result, bad]), "/healthz").passed
    unexpected = replace(result, statuses=[200, 500])
    assert check_of(worst_case.checks([result, unexpected]), "status") == Check(
        "each response has an expected status", "1 of 2 image", False
    )


def test_retry_storm_fails_for_each_of_its_effects() -> None:
    """Low goodput, failed connections, slow probes, late recovery and growing memory fail one check each."""

    def probed(**values: float) -> HealthProber:
        prober = HealthProber("http://127.0.0.1:1")
        vars(prober).update(values)
        return prober

    good = probed(probes=10, slowest_ms=10.0, p99_ms=10.0)
    result = RetryStormResult("146 KB", 1000, 100, 91, 5, 0, good, good, (900, 1000, 1050), 1.0, 0)
    assert all(check.passed for check in result.checks())
    assert check_of(replace(result, connections=4000, goodput_rps=86).checks(), "goodput").passed
    bad_results = {
        "goodput": replace(result, goodput_rps=89),
        "connection fails": replace(result, failed=1),
        "management port": replace(result, management=probed(slowest_ms=101.0)),
        "main port": replace(result, main=probed(p99_ms=501.0)),
        "normal": replace(result, recovery_s=2.1),
        "memory": replace(result, memory_mb=(900, 1000, 1051)),
    }
    for words, bad in bad_results.items():
        assert [check.passed for check in bad.checks()].count(False) == 1
        assert not check_of(bad.checks(), words).passed
    assert len(dict(result.measurements())) == 1
    assert "tcp_mem" in [*dict(replace(result, tcp_dropped=7).measurements()).values()][1]


def test_slow_clients_fail_for_each_of_their_effects() -> None:
    """Failed requests, high latency, much memory, and connections that stay open fail one check each."""
    alone = RequestLog.from_records([record(0, 200, 0.01)] * 2, 1)
    result = SlowClientsResult("slow", 10, 1, alone, alone, 0, 10_000, 10)
    assert all(check.passed for check in result.checks())
    bad_results = {
        "succeed": replace(result, beside=RequestLog.from_records([record(0, 200), record(0, 503)], 1)),
        "p99": replace(result, beside=RequestLog.from_records([record(0, 200, 0.05)], 1)),
        "each takes": replace(result, rss_with=10_000_000),
        "closes all": replace(result, closed=9),
    }
    for words, bad in bad_results.items():
        assert [check.passed for check in bad.checks()].count(False) == 1
        assert not check_of(bad.checks(), words).passed


def test_table_marks_failed_checks() -> None:
    """Measurements follow in a second table."""
    table = checks_table([Check("a", "1", True), Check("b", "2", False)], [("rate", "3/s")])
    assert "| a | 1 | passed |\n| b | 2 | **failed** |\n\n| measurement | |" in table
    assert table.endswith("| rate | 3/s |")
