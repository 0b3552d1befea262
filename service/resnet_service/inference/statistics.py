"""Counters of the requests and batches of a model, for Triton's statistics extension.

They are plain integers: a request or a batch adds to them once, when it ends, which takes 4 us and 0.4 us.
They count since the service started; a reload does not reset them, so that differences between two readings
are never negative.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from resnet_service.errors import ModelLoadError
from resnet_service.inference.request_timing import STAGES, RequestTiming
from resnet_service.models import ModelVersion


class Counter(IntEnum):
    """The counters of requests, by their position. Durations are in nanoseconds."""

    INFERENCES = 0  # images with a result; this and the next ones are of successful requests
    SUCCESS = 1
    SUCCESS_NS = 2
    QUEUE_NS = 3
    DECODE_NS = 4
    DEVICE_NS = 5
    OUTPUT_NS = 6
    FAIL = 7
    FAIL_NS = 8


MAX_VERSIONS: Final = 100
"""Versions that a process can load until it is restarted."""
_NS: Final = 1_000_000_000


class RequestCounters:
    """What one process counts of the requests that end in it.

    counters = RequestCounters()
    counters.add_success(timing)
    """

    def __init__(self, values: "memoryview[int] | None" = None) -> None:
        """Add to `values`, one integer for each `Counter`, which can be shared memory."""
        self.values: list[int] | memoryview[int] = [0] * len(Counter) if values is None else values

    def add_success(self, timing: RequestTiming) -> None:
        """Count a request whose client gets its results.

        Its duration does not include the time to receive the body. The stages of a request with several
        images last from the first to the last image, so that they overlap.
        """
        seconds = dict.fromkeys(STAGES, 0.0)
        total_s, images, ended = timing.total_s, timing.images, 0.0
        for stage, started, ended in timing.intervals():  # in their order: that of the device is the last
            seconds[stage] = ended - started
        increments = (  # in the order of `Counter`, whose members take longer to look up
            sum(image.has_result for image in images) if images else 1,
            1,
            int((total_s - seconds["read"]) * _NS),
            int((seconds["wait"] + seconds["queue"]) * _NS),
            int(seconds["decode"] * _NS),
            int(seconds["device"] * _NS),
            int((timing.started + total_s - ended) * _NS) if seconds["device"] else 0,
        )
        values = self.values
        for counter, increment in enumerate(increments):
            values[counter] += increment

    def add_failure(self, timing: RequestTiming) -> None:
        """Count a request that ends without results."""
        self.values[Counter.FAIL] += 1
        self.values[Counter.FAIL_NS] += int((timing.total_s - timing.seconds("read")) * _NS)


class BatchTotal(NamedTuple):
    """The batches of one size that were run, and their duration on the device."""

    executions: int
    ns: int


class BatchCounters:
    """What the process that has the devices counts of the batches that the model has run."""

    def __init__(self) -> None:
        self.last_ms = 0
        """When the last batch was finished, in milliseconds since 1970; 0 if there was none."""
        self._totals: dict[int, tuple[int, int]] = {}

    def add(self, size: int, seconds: float) -> None:
        """Count a batch of `size` images that has its results."""
        count, ns = self._totals.get(size, (0, 0))
        self._totals[size] = count + 1, ns + int(seconds * _NS)
        self.last_ms = time.time_ns() // 1_000_000

    def totals(self) -> dict[int, BatchTotal]:
        """Return the totals by batch size, the smallest first."""
        return {size: BatchTotal(*self._totals[size]) for size in sorted(self._totals)}


@dataclass(frozen=True)
class ModelStatistics:
    """A reading of all counters of one version of a model, in all processes.

    requests: the value of each `Counter`.
    batches: the totals by batch size.
    last_ms: when the last batch was finished, in milliseconds since 1970; 0 if there was none.
    """

    name: str
    version: str
    requests: tuple[int, ...]
    batches: dict[int, BatchTotal]
    last_ms: int


class VersionCounters:
    """The counters of one version of a model, as long as the service runs.

    index: the place of the version among all that the service has had.
    requests: the counters of each process that handles HTTP.
    batches: those of the process that has the devices.
    has_served: whether the version has ever served; one whose load failed has no statistics.
    """

    def __init__(self, index: int, requests: list[RequestCounters]) -> None:
        self.index = index
        self.requests = requests
        self.batches = BatchCounters()
        self.has_served = False

    def read(self, name: str, version: str) -> ModelStatistics:
        """Return the sums over all processes."""
        sums = tuple(map(sum, zip(*(counters.values for counters in self.requests), strict=True)))
        return ModelStatistics(name, version, sums, self.batches.totals(), self.batches.last_ms)


class StatisticsTable:
    """The counters of all versions that the service has loaded; those of unloaded ones are kept.

    table = StatisticsTable()
    table.of(ModelVersion("resnet50", "1")).requests[0].add_success(timing)
    """

    def __init__(self) -> None:
        self._versions: dict[ModelVersion, VersionCounters] = {}
        self._create: Callable[[int], list[RequestCounters]] = lambda _: [RequestCounters()]

    def of(self, key: ModelVersion) -> VersionCounters:
        """Return the counters of a version, new ones for a new version. Raises ModelLoadError.

        The number of versions is limited: each has its place in the memory that processes share.
        """
        if key not in self._versions:
            index = len(self._versions)
            if index >= MAX_VERSIONS:
                raise ModelLoadError(f"the process has loaded {MAX_VERSIONS} versions: restart it")
            self._versions[key] = VersionCounters(index, self._create(index))
        return self._versions[key]

    def use(self, create: Callable[[int], list[RequestCounters]]) -> None:
        """Count requests in what `create` returns for the index of a version."""
        self._create = create
        for counters in self._versions.values():
            counters.requests = create(counters.index)

    def read(self) -> list[ModelStatistics]:
        """Return the statistics of all versions that serve, or have served."""
        return [counters.read(*key) for key, counters in tuple(self._versions.items()) if counters.has_served]
