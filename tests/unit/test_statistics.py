"""The counters of requests and batches for Triton's statistics."""

import time

import pytest

from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.statistics import (
    BatchTotal,
    Counter,
    ModelStatistics,
    RequestCounters,
    VersionCounters,
)
from resnet_service.server.workers.shared_memory import MAX_WORKERS, SharedMemory


def finished(*stages: tuple[str, float, float], images: int = 0, ago_s: float = 1.0) -> RequestTiming:
    """Return the record of a request that began `ago_s` seconds ago; the stages are relative to its start."""
    start = time.perf_counter() - ago_s
    timing = RequestTiming(start)
    records = [timing.image() for _ in range(images)] or [timing]
    for stage, begin, end in stages:
        record = timing if stage in ("read", "wait") else records[0]
        record.record(stage, start + begin, start + end)  # type: ignore[arg-type]
    return timing


def read(counters: VersionCounters) -> ModelStatistics:
    return counters.read("model", "1")


def seconds(counters: VersionCounters, counter: Counter) -> float:
    return read(counters).requests[counter] / 1e9


def test_success_adds_the_stages_of_the_request() -> None:
    """The time to receive the body does not count; the wait under overload is part of the queue."""
    counters = VersionCounters(0, [RequestCounters()])
    stages = [
        ("wait", 0.0, 0.1),
        ("read", 0.1, 0.3),
        ("decode", 0.3, 0.35),
        ("queue", 0.35, 0.4),
        ("device", 0.4, 0.7),
    ]
    counters.requests[0].add_success(finished(*stages))
    assert read(counters).requests[: Counter.SUCCESS_NS] == (1, 1)
    assert seconds(counters, Counter.SUCCESS_NS) == pytest.approx(0.8, abs=0.05)
    assert seconds(counters, Counter.QUEUE_NS) == pytest.approx(0.15)
    assert seconds(counters, Counter.DECODE_NS) == pytest.approx(0.05)
    assert seconds(counters, Counter.DEVICE_NS) == pytest.approx(0.3)
    assert seconds(counters, Counter.OUTPUT_NS) == pytest.approx(0.3, abs=0.05)
    assert read(counters).requests[Counter.FAIL :] == (0, 0)


def test_images_without_a_result_are_not_inferences() -> None:
    """A request of /predict/batch succeeds even if none of its images does."""
    counters = VersionCounters(0, [RequestCounters()])
    partly = finished(("device", 0.1, 0.2), images=3)
    partly.images[0].has_result = partly.images[2].has_result = True
    counters.requests[0].add_success(partly)
    counters.requests[0].add_success(finished(images=2))
    assert read(counters).requests[: Counter.SUCCESS_NS] == (2, 2)
    assert seconds(counters, Counter.OUTPUT_NS) == pytest.approx(0.8, abs=0.05)


def test_failure_adds_its_duration_only() -> None:
    """Without the time to receive the body."""
    counters = VersionCounters(0, [RequestCounters()])
    counters.requests[0].add_failure(finished(("read", 0.1, 0.5), ("device", 0.5, 0.6)))
    assert read(counters).requests[: Counter.FAIL + 1] == (0,) * Counter.FAIL + (1,)
    assert seconds(counters, Counter.FAIL_NS) == pytest.approx(0.6, abs=0.05)


def test_batches_are_added_by_size() -> None:
    """The smallest size is the first."""
    counters = VersionCounters(0, [RequestCounters()])
    assert (read(counters).batches, read(counters).last_ms) == ({}, 0)
    before_ms = time.time_ns() // 1_000_000
    for size, duration_s in ((8, 0.25), (1, 0.5), (8, 0.5)):
        counters.batches.add(size, duration_s)
    assert list(read(counters).batches.items()) == [
        (1, BatchTotal(1, 500_000_000)),
        (8, BatchTotal(2, 750_000_000)),
    ]
    assert before_ms <= read(counters).last_ms <= time.time_ns() // 1_000_000


def test_counters_of_all_processes_are_added() -> None:
    """Each worker has its own in the shared memory; a worker that replaces another one continues them."""
    memory, counters = SharedMemory(), VersionCounters(3, [])
    counters.requests = [memory.request_counters(index, 3) for index in range(MAX_WORKERS)]
    for index in (0, 1, MAX_WORKERS - 1):
        worker = SharedMemory(memory.fd).request_counters(index, 3)
        worker.add_success(finished())
        worker.add_failure(finished(ago_s=2.0))
    SharedMemory(memory.fd).request_counters(1, 3).add_success(finished())
    assert read(counters).requests[: Counter.SUCCESS + 1] == (4, 4)
    assert read(counters).requests[Counter.FAIL] == 3
    assert seconds(counters, Counter.FAIL_NS) == pytest.approx(6, abs=0.1)
    assert list(memory.beats) == [0] * MAX_WORKERS
    assert isinstance(counters.requests[0], RequestCounters)
