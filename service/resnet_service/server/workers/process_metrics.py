"""The metrics of all processes together: those of the main process, and those of its HTTP workers.

Workers keep theirs in files (prometheus_client's multiprocess mode), so that the counts of a worker that was
killed are not lost. Exemplars are not kept, because that mode has none.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

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


def forget_gauges(pid: int, folder: Path) -> None:
    """Remove the gauges of a worker that has ended; its counters and histograms stay."""
    mark_process_dead(pid, str(folder))
