"""The directory of a run: its files, each written completely or not at all, and the state to resume from."""

import fcntl
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from resnet_service.errors import TrainingError
from resnet_service.files import atomic_write
from resnet_service.models import checkpoint
from resnet_service.models.state_dicts import LOAD_ERRORS
from resnet_service.training.run_log import render_model_card


class RunDirectory:
    """The files of one run, from its first epoch until it is finished.

    Attributes:
        path: the directory.
        model: the checkpoint.
        card: the model card.
        log: the run's log, as JSON.
        learning_curve: a plot.
        confusion_matrix: a plot.

    """

    def __init__(self, path: Path) -> None:
        """Create the directory; raises TrainingError if it cannot be written."""
        self.path = path
        self.model = path / "model.safetensors"
        self.card = path / "model.md"
        self.log = path / "run_log.json"
        self.learning_curve = path / "learning_curve.png"
        self.confusion_matrix = path / "confusion_matrix.png"
        self._resume = path / "resume.pt"
        try:
            path.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error.strerror}") from error

    def is_finished(self) -> bool:
        """Return whether the directory holds a finished run."""
        return self.model.exists() and not self._resume.exists()

    def is_resumable(self) -> bool:
        """Return whether the directory holds an unfinished run with at least one completed epoch."""
        return self._resume.exists()

    def read_log(self) -> dict[str, Any]:
        """Return the log of the finished run; raises TrainingError if it is broken."""
        try:
            log: dict[str, Any] = json.loads(self.log.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{self.log} cannot be read: {error}; choose another --output") from error
        if not isinstance(log, dict) or not {"config", "accuracy", "epochs", "images"} <= log.keys():
            raise TrainingError(f"{self.log} is not the log of a finished run; choose another --output")
        return log

    def load_resume_state(self) -> dict[str, Any]:
        """Return the state that `save_epoch` wrote last; raises TrainingError if it is broken."""
        try:
            state: dict[str, Any] = torch.load(self._resume, map_location="cpu", weights_only=True)
            keys = {"config", "digest", "trainer", "epochs", "seconds", "resumed_after", "warnings"}
            if not keys <= state.keys():
                raise ValueError("it is not the state of a run")
        except (*LOAD_ERRORS, pickle.UnpicklingError) as error:
            raise TrainingError(f"{self._resume} cannot be read: {error}; choose another --output") from error
        return state

    def check_disk_space(self, parameters: int) -> None:
        """Raise TrainingError if the disk has too little space, by a rough estimate, for a run's files."""
        # Weights, average and momentum, of the last epoch and of the current one, and the checkpoint.
        needed = parameters * 4 * (2 * 3 + 1)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise TrainingError(
                f"{self.path} has {free / 1e6:.0f} MB free, but this run needs {needed / 1e6:.0f} MB"
            )

    def save_epoch(self, state: Mapping[str, Any], log: Mapping[str, Any]) -> None:
        """Write the state for `load_resume_state`, and the log; raises TrainingError."""
        with self._translate_write_errors():
            with atomic_write(self._resume) as temporary:
                torch.save(state, temporary)
            self._write(self.log, json.dumps(log, indent=1))

    def save_result(
        self, trained: checkpoint.Checkpoint, log: Mapping[str, Any], confusion: Tensor, labels: Sequence[str]
    ) -> None:
        """Write all files of a finished run; `confusion` is int64 [C, C]. Raises TrainingError."""
        from resnet_service.training import plots

        with self._translate_write_errors():
            checkpoint.save_checkpoint(trained, self.model)
            self._write(self.card, render_model_card(log))
            plots.learning_curve(log, self.learning_curve)
            plots.confusion_matrix(confusion, labels, self.confusion_matrix)
            self._write(self.log, json.dumps({**log, "confusion": confusion.tolist()}, indent=1))
            self._resume.unlink(missing_ok=True)

    def _write(self, path: Path, text: str) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(text.rstrip() + "\n", encoding="utf-8")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out for the block; raises TrainingError if one holds the lock."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TrainingError(f"{self.path} is locked by another run") from error
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _translate_write_errors(self) -> Iterator[None]:
        try:
            yield
        # torch reports a full disk as a RuntimeError.
        except (OSError, RuntimeError, SafetensorError) as error:
            hint = "; --resume continues after the last saved epoch" if self._resume.exists() else ""
            raise TrainingError(f"{self.path} could not be written: {error}{hint}") from error
