"""Run a network with PyTorch itself: batch norm folded, channels last, in the precision given."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Final

import structlog
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from resnet_service.devices import Precision
from resnet_service.errors import DeviceError, DeviceOutOfMemoryError, DeviceUnavailableError
from resnet_service.files import app_cache_dir
from resnet_service.images import Crop, Preprocessing
from resnet_service.runtimes import DeviceMemory, TopKResult, normalization, stack_crops
from resnet_service.runtimes.cuda_graphs import CudaGraphs

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_DTYPES: Final = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_OUT_OF_MEMORY: Final = ("can't allocate memory", "out of memory")


class TorchRuntime:
    """A network on one device, from construction to the end of the process.

    On a GPU it has a stream of its own, so that its batch is copied while a sibling's is computed, and
    replays the network as one graph for each batch size.
    """

    name: str = "torch"

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        precision: Precision,
        threads: int | None = None,
        *,
        compiled: bool = False,
        cuda_graphs: bool = True,
        channels_last: bool = True,
    ) -> None:
        """Put a copy of `network` on `device`; DeviceUnavailableError where it cannot be `compiled`."""
        self.device = str(device)
        self.precision: str = precision
        self._device = device
        self._dtype = _DTYPES[precision]
        self._channels_last = channels_last
        self._threads = threads
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with translate_device_errors():
            # Folded in fp32 before the weights are rounded: batch norm's own statistics never are.
            folded = fuse(network)  # a copy
            self._network: Callable[[Tensor], Tensor] = folded.to(device, self._dtype).to(
                memory_format=torch.channels_last if channels_last else torch.contiguous_format
            )
            self._mean, self._std = (values.to(device) for values in normalization(preprocessing))
        if compiled:
            self._compile(preprocessing.crop)
        self._graphs = CudaGraphs(self._forward, device) if device.type == "cuda" and cuda_graphs else None

    def replica(self) -> "TorchRuntime":
        """Return a runtime for another batch at the same time, with the same weights."""
        other = copy(self)
        if self._device.type == "cuda":
            other._stream = torch.cuda.Stream(self._device)
            other._graphs = CudaGraphs(other._forward, self._device) if self._graphs else None
        return other

    @torch.inference_mode()
    def run(self, crops: Sequence[Crop], k: int) -> TopKResult:
        """Classify a batch: see `Runtime.run`."""
        if self._threads is not None:
            # Here, not in __init__: OpenMP keeps the number for each calling thread.
            torch.set_num_threads(self._threads)
        with translate_device_errors(), torch.cuda.stream(self._stream):  # None: as it is
            best = self._probabilities(crops).topk(k)
            return TopKResult(best.indices.cpu().numpy(), best.values.cpu().numpy())

    def memory(self) -> DeviceMemory | None:
        """Return what torch holds on the device; None on the CPU."""
        if self._device.type == "cuda":
            limit = torch.cuda.get_device_properties(self._device).total_memory
            return DeviceMemory(torch.cuda.memory_reserved(self._device), limit)
        if self._device.type == "mps":
            return DeviceMemory(torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory())
        return None

    def _probabilities(self, crops: Sequence[Crop]) -> Tensor:
        if self._graphs is not None:
            try:
                return self._graphs(crops)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # AcceleratorError too, which will come again if the device failed
                _log.warning("the network cannot be recorded as a CUDA graph", reason=str(error))
                self._graphs = None
        batch = stack_crops(crops)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return self._forward(batch.to(self._device))

    def _forward(self, images: Tensor) -> Tensor:
        """[N, S, S, 3] uint8 -> [N, classes] fp32. Channels last is the layout it already has."""
        normalized = (images.permute(0, 3, 1, 2) - self._mean) / self._std
        if not self._channels_last:
            normalized = normalized.contiguous()
        return self._network(normalized.to(self._dtype)).float().softmax(1)

    @torch.inference_mode()
    def _compile(self, side: int) -> None:
        """Compile for one image and for several; what was compiled once is kept for the next start."""
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(app_cache_dir() / "inductor"))
        self._network = torch.compile(self._network, dynamic=True)
        try:
            for count in (1, 2):
                self._forward(torch.zeros(count, side, side, 3, dtype=torch.uint8, device=self._device))
        except Exception as error:  # of many kinds, from the network's Python to the C++ compiler
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DeviceUnavailableError(f"torch.compile cannot compile it: {reason}") from error


@contextmanager
def translate_device_errors() -> Iterator[None]:
    """Turn torch's exceptions into the service's own, where they say something about the device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceOutOfMemoryError("the device is out of memory") from error
    except torch.AcceleratorError as error:
        # CUDA's own errors stick: every later call in the process fails as well.
        raise DeviceError("the device has failed") from error
    except RuntimeError as error:
        if any(text in str(error) for text in _OUT_OF_MEMORY):  # the CPU and MPS have no class for it
            raise DeviceOutOfMemoryError("the device is out of memory") from error
        raise
