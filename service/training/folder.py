"""The folder of a run: its files, each there whole or not at all, and what an earlier run left in it."""

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor

from service.errors import TrainingImpossible
from service.files import replacing
from service.models import checkpoint
from service.training import record

_BROKEN: Final = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError)


class RunFolder:
    """The files of one run, from its first epoch to its end."""

    def __init__(self, path: Path) -> None:
        """Make the folder; raises TrainingImpossible where it cannot be written."""
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
            raise TrainingImpossible(f"{path} cannot be written: {error.strerror}") from error

    def finished(self) -> bool:
        """Say whether a run has come to its end here."""
        return self.model.exists() and not self._resume.exists()

    def started(self) -> bool:
        """Say whether a run has finished an epoch here, but not its last steps."""
        return self._resume.exists()

    def read_log(self) -> dict[str, Any]:
        """Return the log of the run that was here before; raises TrainingImpossible where it is broken."""
        try:
            log: dict[str, Any] = json.loads(self.log.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingImpossible(f"{self.log} cannot be read: {error}; give another --out") from error
        return log

    def read_state(self) -> dict[str, Any]:
        """Return what `save_epoch` wrote last; raises TrainingImpossible where it is broken."""
        try:
            state: dict[str, Any] = torch.load(self._resume, map_location="cpu", weights_only=True)
        except _BROKEN as error:
            raise TrainingImpossible(f"{self._resume} cannot be read: {error}; give another --out") from error
        return state

    def check_room(self, parameters: int) -> None:
        """Raise TrainingImpossible where the disk has no room for the files of a run, roughly."""
        # Weights, average and momentum, of the last epoch and of this one, and the checkpoint.
        needed = parameters * 4 * (2 * 3 + 1)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise TrainingImpossible(
                f"{self.path} has {free / 1e6:.0f} MB left, and this run needs {needed / 1e6:.0f} MB"
            )

    def save_epoch(self, state: Mapping[str, Any], log: Mapping[str, Any]) -> None:
        """Write what `read_state` gives back, and the log so far."""
        with self._writing():
            with replacing(self._resume) as temporary:
                torch.save(state, temporary)
            record.write_log(log, self.log)

    def save_result(
        self, trained: checkpoint.Checkpoint, log: Mapping[str, Any], counts: Tensor, labels: Sequence[str]
    ) -> None:
        """Write everything that a finished run leaves; `counts` is its confusion matrix."""
        with self._writing():
            checkpoint.save(trained, self.model)
            self.card.write_text(record.card(log), encoding="utf-8")
            record.plot_learning_curve(log, self.learning_curve)
            record.plot_confusion(counts, labels, self.confusion_matrix)
            record.write_log({**log, "confusion": counts.tolist()}, self.log)
            self._resume.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # torch reports a full disk as a RuntimeError.
        except (OSError, RuntimeError, SafetensorError) as error:
            kept = "; the epochs saved before are kept, go on with --resume" if self._resume.exists() else ""
            raise TrainingImpossible(f"{self.path} could not be written: {error}{kept}") from error
