"""The metrics of all processes together: those of the main process, and those of its HTTP workers.

Workers keep theirs in files (prometheus_client's multiprocess mode), so that the counts of a worker that was
killed are not lost. Exemplars are not kept, because that mode has none.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_FILES: Final = ("counter", "gauge_livemax", "gauge_livesum", "histogram")
"""The files of a worker, by their prefix in prometheus_client."""
_FILE_BYTES: Final = 2**20

_SUMMED: Final = frozenset(
    {
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    }
)
"""The metrics of a process that are added up; the others are those of the main process."""


class AllProcesses(Collector):
    """Adds up the samples of this process and of its workers.

    registry = CollectorRegistry()
    registry.register(AllProcesses(metrics.registry, folder, lambda: [worker.pid]))
    """

    def __init__(self, own: CollectorRegistry, folder: Path, pids: Callable[[], Iterable[int]]) -> None:
        """`folder` has the files of the workers, and `pids` returns the numbers of those that run."""
        self._own = own
        self._workers = MultiProcessCollector(None, str(folder))
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        """Return each metric once, with the sum of its samples (called by the registry)."""
        merged: dict[str, Metric] = {}
        samples: dict[str, dict[tuple[object, ...], Sample]] = {}
        for metric in self._all():
            known = merged.setdefault(metric.name, metric)
            by_labels = samples.setdefault(known.name, {})
            for sample in metric.samples:
                key = (sample.name, *sorted(sample.labels.items()))
                previous = by_labels.get(key)
                value = sample.value if previous is None else previous.value + sample.value
                by_labels[key] = (previous or sample)._replace(value=value)
        for name, metric in merged.items():
            metric.samples = list(samples[name].values())
        return merged.values()

    def _all(self) -> Iterator[Metric]:
        yield from self._own.collect()
        yield from self._workers.collect()
        for pid in self._pids():
            for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                metric.samples = [sample for sample in metric.samples if sample.name in _SUMMED]
                yield metric


def reserve_files(pid: int, folder: Path) -> None:
    """Allocate the files of a worker before its metrics open them.

    Otherwise they have holes, and a write to a hole while the file system is full ends the process (SIGBUS).
    A file of an earlier process with this id keeps its values. Raises OSError if there is too little space.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    for prefix in _FILES:
        fd = os.open(folder / f"{prefix}_{pid}.db", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, _FILE_BYTES)
        finally:
            os.close(fd)


def forget_gauges(pid: int, folder: Path) -> None:
    """Remove the gauges of a worker that has ended; its counters and histograms stay."""
    mark_process_dead(pid, str(folder))
