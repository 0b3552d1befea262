"""Classify a data set from beginning to end, or from where it was left."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from resnet_service.batch_inference.execution import ExecutionConfig, classify_dataset
from resnet_service.batch_inference.results import SCHEMA, ResultsDirectory
from resnet_service.batch_inference.storage import list_images, resolve_location
from resnet_service.inference import labels_from_path
from resnet_service.models import Model


@dataclass(frozen=True)
class BatchSummary:
    """What a run came to. `labeled` images tell their class by their name, and `right` of them were.

    `seconds` are from the first task to the last answer, with the start of the workers; `already` were
    answered by an earlier run, and count in no other figure.
    """

    images: int
    failed: int
    already: int
    labeled: int
    right: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images answered a second."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def accuracy(self) -> float | None:
        """The share of the labeled images that is right; None where no name tells a class."""
        return self.right / self.labeled if self.labeled else None


class BatchJob:
    """The images of `source` that `target` does not hold yet."""

    def __init__(self, source: str, target: str, model: Model, *, limit: int | None, resume: bool) -> None:
        """Look at both places; raises StorageError."""
        self._location = resolve_location(source)
        self._answers = ResultsDirectory(resolve_location(target), model)
        self._model = model
        all_paths = list_images(self._location)[:limit]
        self._answers.validate(resume=resume)
        held = self._answers.completed_paths() if resume else set()
        self.paths: Sequence[str] = [path for path in all_paths if self._location.name_of(path) not in held]
        self._already = len(all_paths) - len(self.paths)

    def run(
        self, config: ExecutionConfig, on_progress: Callable[[int], Any], write_every_s: float = 5.0
    ) -> BatchSummary:
        """Classify what is left; needs a `cluster`. `watch` is told of each number of images answered.

        Rows are written every `write_every_s` seconds, and the last of them at the end, however it comes, but
        for a SIGKILL: that loses those seconds.
        """
        counted = _Tally(self._model.labels)
        rows: list[pa.Table] = []
        started = written = ended = time.monotonic()
        try:
            if self.paths:
                for table in classify_dataset(self._location, self.paths, self._model, config):
                    rows.append(self._named(table))
                    counted.add(rows[-1])
                    on_progress(table.num_rows)
                    ended = time.monotonic()
                    if time.monotonic() - written >= write_every_s:
                        self._write(rows)
                        written = time.monotonic()
        finally:
            self._write(rows)
        seconds = ended - started
        return BatchSummary(
            counted.images, counted.failed, self._already, counted.labeled, counted.right, seconds
        )

    def _named(self, table: pa.Table) -> pa.Table:
        names = [self._location.name_of(path) for path in table.column("path").to_pylist()]
        return table.set_column(0, SCHEMA.field("path"), pa.array(names, pa.string()))

    def _write(self, rows: list[pa.Table]) -> None:
        if rows:
            # Taken first: an interrupt between the two leaves rows out, which --resume mends, not twice in.
            taken, rows[:] = rows[:], []
            self._answers.add(pa.concat_tables(taken))


class _Tally:
    """Adds rows up."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self.images = self.failed = self.labeled = self.right = 0

    def add(self, rows: pa.Table) -> None:
        columns = (rows.column(name).to_pylist() for name in ("path", "class_id", "error"))
        for path, class_id, error in zip(*columns, strict=True):
            self.images += 1
            self.failed += error is not None
            if error is None and (classes := labels_from_path(path, self._labels)):
                self.labeled += 1
                self.right += class_id in classes
