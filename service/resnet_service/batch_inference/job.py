"""Classify a data set from the beginning, or resume after the images that already have results."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from resnet_service.batch_inference.execution import ExecutionConfig, classify_dataset
from resnet_service.batch_inference.results import SCHEMA, ResultsDirectory
from resnet_service.batch_inference.storage import list_images
from resnet_service.images.file_names import describe_skipped
from resnet_service.models import Model
from resnet_service.models.class_folders import classes_of_folder
from resnet_service.storage import resolve_location


@dataclass(frozen=True)
class BatchSummary:
    """The totals of one run.

    Attributes:
        images: classified by this run, failed ones included.
        failed: images with an error.
        skipped: images that an earlier run has classified; they count in no other field.
        labeled: classified images with a true class.
        correct: labeled images whose predicted class is that class.
        seconds: from the first task to the last result, including the start of the workers.

    """

    images: int
    failed: int
    skipped: int
    labeled: int
    correct: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput of this run."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def accuracy(self) -> float | None:
        """The share of labeled images that are correct, 0..1; None without labeled images."""
        return self.correct / self.labeled if self.labeled else None


class BatchJob:
    """The classification of a data set: all images of a source that the results do not contain yet.

        job = BatchJob("photos", "results", model, limit=None, resume=False)
        with ray_cluster():
            summary = job.run(ExecutionConfig(), on_progress=print)

    `paths` are the images that remain.
    """

    def __init__(
        self,
        source: str,
        target: str,
        model: Model,
        *,
        limit: int | None,
        resume: bool,
        with_embeddings: bool = False,
        on_message: Callable[[str], None] = lambda _: None,
    ) -> None:
        """List the images of `source`, at most `limit`, and check `target`; both are paths or URIs.

        `with_embeddings` is that of the `ExecutionConfig` of `run`. `on_message` is called with a description
        of the files of `source` that are not images. Raises StorageError if `source` has no images, or
        `target` cannot take results.
        """
        self._location = resolve_location(source)
        self._results = ResultsDirectory(resolve_location(target), model, with_embeddings=with_embeddings)
        self._model = model
        self._results.validate(resume=resume)
        all_paths, skipped_files = list_images(self._location)
        all_paths = all_paths[:limit]
        if skipped_files:
            on_message(describe_skipped(skipped_files, self._location.root))
        completed = self._results.completed_paths() if resume else set()
        self.paths: Sequence[str] = [
            path for path in all_paths if self._location.name_of(path) not in completed
        ]
        self._skipped = len(all_paths) - len(self.paths)

    def run(
        self, config: ExecutionConfig, on_progress: Callable[[int], Any], write_every_s: float = 5.0
    ) -> BatchSummary:
        """Classify the remaining images inside a `ray_cluster` block.

        `on_progress` is called with the number of images of each block that is done. Rows are written every
        `write_every_s` seconds and at the end, also after an error; only a SIGKILL loses the rows of the last
        `write_every_s` seconds. Raises what `classify_dataset` raises.
        """
        tally = _Tally(self._model.labels)
        rows: list[pa.Table] = []
        started = written = ended = time.monotonic()
        try:
            if self.paths:
                for table in classify_dataset(self._location, self.paths, self._model, config):
                    rows.append(self._with_public_names(table))
                    tally.add(rows[-1])
                    on_progress(table.num_rows)
                    ended = time.monotonic()
                    if ended - written >= write_every_s:
                        self._write(rows)
                        written = time.monotonic()
        finally:
            self._write(rows)
        return BatchSummary(
            tally.images, tally.failed, self._skipped, tally.labeled, tally.correct, ended - started
        )

    def _with_public_names(self, table: pa.Table) -> pa.Table:
        names = [self._location.name_of(path) for path in table.column("path").to_pylist()]
        return table.set_column(0, SCHEMA.field("path"), pa.array(names, pa.string()))

    def _write(self, rows: list[pa.Table]) -> None:
        if rows:
            # Cleared before the write: an interrupt in between loses rows, which --resume adds again; the
            # other order would duplicate them.
            pending, rows[:] = rows[:], []
            self._results.add(pa.concat_tables(pending))


class _Tally:
    """Counts images, errors and correct classes over rows of results."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self.images = self.failed = self.labeled = self.correct = 0

    def add(self, rows: pa.Table) -> None:
        columns = (rows.column(name).to_pylist() for name in ("true_class", "class_id", "error"))
        for true_class, class_id, error in zip(*columns, strict=True):
            self.images += 1
            self.failed += error is not None
            if error is None and true_class is not None:
                self.labeled += 1
                self.correct += class_id in classes_of_folder(true_class, self._labels)
