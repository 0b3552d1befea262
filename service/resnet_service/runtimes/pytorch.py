"""Run a network with PyTorch: batch normalization folded, channels last, in the selected precision."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Final

import structlog
import torch
from torch import Tensor, nn

from resnet_service.devices import Precision
from resnet_service.errors import DeviceError, DeviceOutOfMemoryError, DeviceUnavailableError, first_line
from resnet_service.files import set_folder_variables
from resnet_service.images import Crop, Preprocessing
from resnet_service.runtimes.batch_norm import TRACING, fold_batch_norms
from resnet_service.runtimes.cuda_graphs import CudaGraphs, Outputs
from resnet_service.runtimes.network_embedding import output_embedding
from resnet_service.runtimes.runtime import DeviceMemory, TopKResult, max_entropy, normalization, stack_crops

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_DTYPES: Final = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_DEFAULT_THREADS: Final = torch.get_num_threads()
_OUT_OF_MEMORY_TEXTS: Final = ("can't allocate memory", "out of memory")


class TorchRuntime:
    """A network on one device: see `Runtime`.

    On a GPU each runtime has a CUDA stream, so that its batch is copied while that of a replica is computed,
    and replays the network as one CUDA graph per batch size.
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
        """Copy `network` to `device`; `threads` limits the CPU threads of a batch.

        Raises DeviceUnavailableError if `compiled` is set and torch.compile fails.
        """
        self.device = str(device)
        self.precision: str = precision
        self._device = device
        self._dtype = _DTYPES[precision]
        self._channels_last = channels_last
        # With a number of its own in any case: while an explanation runs, new threads would have that of its.
        self._threads = threads or (_DEFAULT_THREADS if device.type == "cpu" else None)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with translate_device_errors():
            # Folded in fp32 before the weights are rounded, so that the statistics are not rounded.
            folded = fold_batch_norms(network)
            self.embedding_size = output_embedding(folded)
            self._network: Callable[[Tensor], Outputs] = folded.to(device, self._dtype).to(
                memory_format=torch.channels_last if channels_last else torch.contiguous_format
            )
            self._mean, self._std = (values.to(device) for values in normalization(preprocessing))
        if compiled:
            self._compile(preprocessing.crop)
        self._graphs = CudaGraphs(self._forward, device) if device.type == "cuda" and cuda_graphs else None

    def replica(self) -> "TorchRuntime":
        """Return a runtime that shares the weights and runs another batch at the same time."""
        replica = copy(self)
        if self._device.type == "cuda":
            replica._stream = torch.cuda.Stream(self._device)
            replica._graphs = CudaGraphs(replica._forward, self._device) if self._graphs else None
        return replica

    @torch.inference_mode()
    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:
        """Classify a batch: see `Runtime.run`."""
        if self._threads is not None:
            # Not in __init__, because OpenMP stores the number per calling thread.
            torch.set_num_threads(self._threads)
        # A stream of None changes nothing.
        with TRACING.shared(), translate_device_errors(), torch.cuda.stream(self._stream):
            probabilities, embeddings = self._outputs(crops)
            best = probabilities.topk(k)
            entropy = torch.special.entr(probabilities).sum(1) / max_entropy(probabilities.shape[1])
            result = TopKResult(
                best.indices.cpu().numpy(), best.values.cpu().numpy(), entropy.cpu().numpy(), self.device
            )
            if with_embeddings and embeddings is not None:
                return replace(result, embedding=embeddings.cpu().float().numpy())
            return result

    def memory(self) -> DeviceMemory | None:
        """Return the memory that PyTorch has allocated on the device; None on the CPU."""
        if self._device.type == "cuda":
            limit = torch.cuda.get_device_properties(self._device).total_memory
            return DeviceMemory(torch.cuda.memory_reserved(self._device), limit)
        if self._device.type == "mps":
            return DeviceMemory(torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory())
        return None

    def _outputs(self, crops: Sequence[Crop]) -> Outputs:
        if self._graphs is not None:
            try:
                return self._graphs(crops)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # includes AcceleratorError, which recurs if the device has failed
                _log.warning("cuda_graph_unavailable", reason=str(error))
                self._graphs = None
        batch = stack_crops(crops)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return self._forward(batch.to(self._device))

    def _forward(self, images: Tensor) -> Outputs:
        """[N, S, S, 3] uint8, channels last -> probabilities [N, classes] fp32, embeddings [N, D] or None."""
        normalized = (images.permute(0, 3, 1, 2) - self._mean) / self._std
        if not self._channels_last:
            normalized = normalized.contiguous()
        logits, embeddings = self._network(normalized.to(self._dtype))
        return logits.float().softmax(1), embeddings

    @torch.inference_mode()
    def _compile(self, side: int) -> None:
        """Compile for one image and for several; the compiled code is cached for later starts."""
        set_folder_variables()
        # The second call makes the batch size dynamic. With dynamic=True height and width are dynamic too,
        # and efficientnet_lite0, whose padding depends on them, takes more than 6 minutes instead of one.
        self._network = torch.compile(self._network)
        try:
            for count in (1, 2):
                self._forward(torch.zeros(count, side, side, 3, dtype=torch.uint8, device=self._device))
        except Exception as error:  # torch.compile raises many classes, from Python's to the C++ compiler's
            raise DeviceUnavailableError(
                f"torch.compile cannot compile the network: {first_line(error)}"
            ) from error


@contextmanager
def translate_device_errors() -> Iterator[None]:
    """Convert PyTorch's exceptions about the device to DeviceOutOfMemoryError or DeviceError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceOutOfMemoryError("the device is out of memory") from error
    except torch.AcceleratorError as error:
        # CUDA errors are sticky: every later call in the process fails as well.
        raise DeviceError("the device has failed") from error
    except RuntimeError as error:
        if any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS):  # CPU and MPS raise no specific class
            raise DeviceOutOfMemoryError("the device is out of memory") from error
        raise
