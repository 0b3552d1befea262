"""What was measured, with what it was measured on; kept as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter, ValidationError

from resnet_service import __version__
from resnet_service.benchmark.timing import BenchmarkRow
from resnet_service.errors import BenchmarkError
from resnet_service.files import atomic_write
from resnet_service.machine import HardwareInfo, hardware_info

MemoryFormat = Literal["channels_last", "contiguous"]


@dataclass(frozen=True)
class Variant:
    """One way to run a model."""

    device: str
    runtime: str
    precision: str
    memory_format: MemoryFormat = "channels_last"
    compiled: bool = False

    def __str__(self) -> str:
        """Name what sets it apart from the usual way."""
        parts = [self.device, self.runtime, self.precision]
        parts += ["contiguous"] if self.memory_format == "contiguous" else []
        return " ".join([*parts, *(["compiled"] if self.compiled else [])])


@dataclass(frozen=True)
class ModelRow(BenchmarkRow):
    """A model alone: from pixels in memory to classes."""

    model: str
    variant: Variant


@dataclass(frozen=True)
class EndToEndRow:
    """From the bytes of JPEGs to classes, with `workers` that decode and the device at the same time.

    The two rates of preprocessing are those of the workers, and of one, without a model.
    """

    model: str
    variant: Variant
    batch_size: int
    images: int
    workers: int
    seconds: float
    images_per_second: float
    preprocessing_per_second: float
    preprocessing_with_one_worker: float


@dataclass(frozen=True)
class BenchmarkRun:
    """All that one command measured on one machine."""

    taken: str
    version: str
    hardware: HardwareInfo
    model: tuple[ModelRow, ...] = field(default=())
    end_to_end: tuple[EndToEndRow, ...] = field(default=())

    def machine(self, variant: Variant) -> str:
        """Name what did the work: the GPU or the processor."""
        if variant.device == "cpu" or self.hardware.gpu is None:
            return f"{self.hardware.processor}, {self.hardware.cores} cores"
        return self.hardware.gpu


_RUN: Final = TypeAdapter(BenchmarkRun)


def current_run(model: Sequence[ModelRow] = (), end_to_end: Sequence[EndToEndRow] = ()) -> BenchmarkRun:
    """Return rows measured just now on this machine as a run."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return BenchmarkRun(now, __version__, hardware_info(), tuple(model), tuple(end_to_end))


def to_json(run: BenchmarkRun, indent: int | None = None) -> str:
    """Return a run as it is kept."""
    return _RUN.dump_json(run, indent=indent).decode()


def save_results(run: BenchmarkRun, path: Path) -> None:
    """Write a run; raises OSError."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(run, indent=1), encoding="utf-8")


def load_results(path: Path) -> BenchmarkRun:
    """Read a run; raises BenchmarkError for a file that holds none."""
    try:
        return _RUN.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise BenchmarkError(f"{path} is no result of resnet-service bench: {reason}") from error
