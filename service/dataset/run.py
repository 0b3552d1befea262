"""Classify a data set from beginning to end, or from where it was left."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from service.dataset.answers import SCHEMA, Answers
from service.dataset.execution import Execution, classified
from service.dataset.storage import find_place, pictures
from service.models import Model
from service.offline import classes_in_name


@dataclass(frozen=True)
class Summary:
    """What a run came to. `labelled` pictures tell their class by their name, and `right` of them were.

    `seconds` are from the first task to the last answer, with the start of the workers; `already` were
    answered by an earlier run, and count in no other figure.
    """

    pictures: int
    failed: int
    already: int
    labelled: int
    right: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Pictures answered a second."""
        return self.pictures / self.seconds if self.seconds else 0.0

    @property
    def accuracy(self) -> float | None:
        """The share of the labelled pictures that is right; None where no name tells a class."""
        return self.right / self.labelled if self.labelled else None


class Work:
    """The pictures of `source` that `target` does not hold yet."""

    def __init__(self, source: str, target: str, model: Model, *, limit: int | None, resume: bool) -> None:
        """Look at both places; raises StorageUnavailable."""
        self._place = find_place(source)
        self._answers = Answers(find_place(target), model)
        self._model = model
        all_paths = pictures(self._place)[:limit]
        self._answers.check(resume=resume)
        held = self._answers.held() if resume else set()
        self.paths: Sequence[str] = [path for path in all_paths if self._place.name_of(path) not in held]
        self._already = len(all_paths) - len(self.paths)

    def run(self, how: Execution, watch: Callable[[int], Any], write_every_s: float = 5.0) -> Summary:
        """Classify what is left; needs a `cluster`. `watch` is told of each number of pictures answered.

        Rows are written every `write_every_s` seconds, and the last of them at the end, however it comes, but
        for a SIGKILL: that loses those seconds.
        """
        counted = _Count(self._model.labels)
        rows: list[pa.Table] = []
        started = written = ended = time.monotonic()
        try:
            if self.paths:
                for table in classified(self._place, self.paths, self._model, how):
                    rows.append(self._named(table))
                    counted.add(rows[-1])
                    watch(table.num_rows)
                    ended = time.monotonic()
                    if time.monotonic() - written >= write_every_s:
                        self._write(rows)
                        written = time.monotonic()
        finally:
            self._write(rows)
        seconds = ended - started
        return Summary(
            counted.pictures, counted.failed, self._already, counted.labelled, counted.right, seconds
        )

    def _named(self, table: pa.Table) -> pa.Table:
        names = [self._place.name_of(path) for path in table.column("path").to_pylist()]
        return table.set_column(0, SCHEMA.field("path"), pa.array(names, pa.string()))

    def _write(self, rows: list[pa.Table]) -> None:
        if rows:
            # Taken first: an interrupt between the two leaves rows out, which --resume mends, not twice in.
            taken, rows[:] = rows[:], []
            self._answers.add(pa.concat_tables(taken))


class _Count:
    """Adds rows up."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self.pictures = self.failed = self.labelled = self.right = 0

    def add(self, rows: pa.Table) -> None:
        columns = (rows.column(name).to_pylist() for name in ("path", "class_id", "error"))
        for path, class_id, error in zip(*columns, strict=True):
            self.pictures += 1
            self.failed += error is not None
            if error is None and (classes := classes_in_name(path, self._labels)):
                self.labelled += 1
                self.right += class_id in classes
