"""The folder of a run: its files, each there whole or not at all, and what an earlier run left in it."""

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
from resnet_service.models.weights import LOAD_ERRORS
from resnet_service.training import model_card


class RunDirectory:
    """The files of one run, from its first epoch to its end."""

    def __init__(self, path: Path) -> None:
        """Make the folder; raises TrainingError where it cannot be written."""
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

    def finished(self) -> bool:
        """Say whether a run has come to its end here."""
        return self.model.exists() and not self._resume.exists()

    def started(self) -> bool:
        """Say whether a run has finished an epoch here, but not its last steps."""
        return self._resume.exists()

    def read_log(self) -> dict[str, Any]:
        """Return the log of the run that was here before; raises TrainingError where it is broken."""
        try:
            log: dict[str, Any] = json.loads(self.log.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{self.log} cannot be read: {error}; give another --out") from error
        if not isinstance(log, dict) or not {"request", "accuracy", "epochs", "images"} <= log.keys():
            raise TrainingError(f"{self.log} is no log of a finished run; give another --out")
        return log

    def load_state_dict(self) -> dict[str, Any]:
        """Return what `save_epoch` wrote last; raises TrainingError where it is broken."""
        try:
            state: dict[str, Any] = torch.load(self._resume, map_location="cpu", weights_only=True)
            if not {"request", "digest", "trainer", "epochs", "seconds", "resumed_after"} <= state.keys():
                raise ValueError("it holds something else")
        except (*LOAD_ERRORS, pickle.UnpicklingError) as error:
            raise TrainingError(f"{self._resume} cannot be read: {error}; give another --out") from error
        return state

    def check_disk_space(self, parameters: int) -> None:
        """Raise TrainingError where the disk has no room for the files of a run, roughly."""
        # Weights, average and momentum, of the last epoch and of this one, and the checkpoint.
        needed = parameters * 4 * (2 * 3 + 1)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise TrainingError(
                f"{self.path} has {free / 1e6:.0f} MB left, and this run needs {needed / 1e6:.0f} MB"
            )

    def save_epoch(self, state: Mapping[str, Any], log: Mapping[str, Any]) -> None:
        """Write what `load_state_dict` gives back, and the log so far."""
        with self._writing():
            with atomic_write(self._resume) as temporary:
                torch.save(state, temporary)
            self._write(self.log, json.dumps(log, indent=1))

    def save_result(
        self, trained: checkpoint.Checkpoint, log: Mapping[str, Any], counts: Tensor, labels: Sequence[str]
    ) -> None:
        """Write everything that a finished run leaves; `counts` is its confusion matrix."""
        from resnet_service.training import plots

        with self._writing():
            checkpoint.save_checkpoint(trained, self.model)
            self._write(self.card, model_card.render_model_card(log))
            plots.learning_curve(log, self.learning_curve)
            plots.confusion_matrix(counts, labels, self.confusion_matrix)
            self._write(self.log, json.dumps({**log, "confusion": counts.tolist()}, indent=1))
            self._resume.unlink(missing_ok=True)

    def _write(self, path: Path, text: str) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(text.rstrip() + "\n", encoding="utf-8")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out for the block; raises TrainingError where one is at it."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TrainingError(f"another run is at work in {self.path}") from error
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # torch reports a full disk as a RuntimeError.
        except (OSError, RuntimeError, SafetensorError) as error:
            kept = "; the epochs saved before are kept, go on with --resume" if self._resume.exists() else ""
            raise TrainingError(f"{self.path} could not be written: {error}{kept}") from error
