"""The results of a benchmark and the hardware that they were measured on, as a JSON file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter, ValidationError

from resnet_service import __version__
from resnet_service.errors import BenchmarkError
from resnet_service.files import atomic_write
from resnet_service.machine import HardwareInfo, hardware_info
from resnet_service.schemas import BenchmarkRow

MemoryFormat = Literal["channels_last", "contiguous"]


@dataclass(frozen=True)
class Variant:
    """One combination of options that a model runs with."""

    device: str
    runtime: str
    precision: str
    memory_format: MemoryFormat = "channels_last"
    compiled: bool = False

    def __str__(self) -> str:
        """Return the options, without those that have their default value."""
        parts = [self.device, self.runtime, self.precision]
        parts += ["contiguous"] if self.memory_format == "contiguous" else []
        return " ".join([*parts, *(["compiled"] if self.compiled else [])])


@dataclass(frozen=True)
class ModelRow(BenchmarkRow):
    """Results of a model without preprocessing: from crops in memory to classes."""

    model: str
    variant: Variant


@dataclass(frozen=True)
class EndToEndRow:
    """Results from JPEG bytes to classes, with `workers` decoding threads and the device in parallel.

    The two rates of preprocessing, in images/s, are measured without a model, with all workers and with one.
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
    """All results of one command on one machine; `measured_at` is an ISO 8601 time in UTC."""

    measured_at: str
    version: str
    hardware: HardwareInfo
    model: tuple[ModelRow, ...] = field(default=())
    end_to_end: tuple[EndToEndRow, ...] = field(default=())

    def machine(self, variant: Variant) -> str:
        """Return the name of the GPU or processor that a variant ran on."""
        if variant.device == "cpu" or self.hardware.gpu is None:
            return f"{self.hardware.processor}, {self.hardware.cores} cores"
        return self.hardware.gpu


_RUN_ADAPTER: Final = TypeAdapter(BenchmarkRun)


def current_run(model: Sequence[ModelRow] = (), end_to_end: Sequence[EndToEndRow] = ()) -> BenchmarkRun:
    """Return a run with rows that were measured on this machine just before."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return BenchmarkRun(now, __version__, hardware_info(), tuple(model), tuple(end_to_end))


def to_json(run: BenchmarkRun, indent: int | None = None) -> str:
    """Return a run as JSON."""
    return _RUN_ADAPTER.dump_json(run, indent=indent).decode()


def save_results(run: BenchmarkRun, path: Path) -> None:
    """Write a run as a JSON file; raises OSError."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(run, indent=1), encoding="utf-8")


def load_results(path: Path) -> BenchmarkRun:
    """Read a run; raises BenchmarkError if the file does not hold one."""
    try:
        return _RUN_ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BenchmarkError(
            f"{path} does not hold results of this version of resnet-service bench --output FILE"
        ) from error
