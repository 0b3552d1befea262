"""Run a network or an ONNX graph with OpenVINO on the CPU: faster than PyTorch in bf16, and supports int8."""

import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
import structlog
import torch
from torch import Tensor, nn

from resnet_service.devices import Precision
from resnet_service.errors import DeviceOutOfMemoryError, DeviceUnavailableError, ModelLoadError, first_line
from resnet_service.images import Crop, Preprocessing
from resnet_service.models import Model, OpenVINOModel
from resnet_service.runtimes.onnx_graph import end_to_end_graph
from resnet_service.runtimes.runtime import DeviceMemory, TopKResult, normalization, stack_crops, top_k
from resnet_service.runtimes.sizing import has_small_images

# Disables telemetry: converting a network sends usage data unless the user has opted out in a file.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None blocks the import

import openvino as ov  # noqa: E402

from resnet_service.runtimes.openvino_cache import cached_topology, write_to_cache  # noqa: E402
from resnet_service.runtimes.openvino_embedding import add_embedding_output, embedding_size  # noqa: E402

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_PRECISION_HINTS: Final[dict[str, str]] = {"fp32": "f32", "bf16": "bf16"}
_OUT_OF_MEMORY_TEXTS: Final = ("bad_alloc", "allocate")
_EXCLUSIVE_AFTER_S: Final = 0.2
"""A batch gets all cores if no two batches ran at the same time for this long."""


class OpenVINORuntime:
    """One stream of a compiled model; streams share the weights. Created by `compile_model`."""

    name: str = "openvino"
    device: str = "cpu"

    def __init__(
        self,
        precision: Precision,
        embedding_size: int | None,
        streams: "_StreamArbiter",
        shared_request: ov.InferRequest,
    ) -> None:
        self.precision: str = precision
        self.embedding_size = embedding_size
        self._streams = streams
        self._shared_request = shared_request

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:
        """Classify a batch: see `Runtime.run`."""
        batch = stack_crops(crops).numpy()
        with self._streams.request(self._shared_request) as request:
            try:
                outputs = request.infer([batch], share_inputs=True, share_outputs=True)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS):
                    raise DeviceOutOfMemoryError("the device is out of memory") from error
                raise
            embeddings = outputs[1] if with_embeddings and self.embedding_size is not None else None
            return top_k(outputs[0], k, self.device, embeddings)  # copies: the next batch overwrites them

    def memory(self) -> DeviceMemory | None:
        """Return None: a CPU has no memory of its own."""
        return None


class _StreamArbiter:
    """Selects the inference request of a batch: exclusive on all cores, or shared if several batches run.

    Thread-safe; each runtime calls it from its thread.
    """

    def __init__(self, exclusive_request: ov.InferRequest) -> None:
        self._exclusive_request = exclusive_request
        self._lock = Lock()
        self._running = 0
        self._last_shared = -math.inf

    @contextmanager
    def request(self, shared_request: ov.InferRequest) -> Iterator[ov.InferRequest]:
        """Yield the request for one batch: the exclusive one, or the runtime's `shared_request`."""
        with self._lock:
            self._running += 1
            now = time.monotonic()
            if self._running > 1:
                self._last_shared = now
            # A delay, because a busy service also has moments without a running batch.
            is_exclusive = now - self._last_shared > _EXCLUSIVE_AFTER_S
        try:
            yield self._exclusive_request if is_exclusive else shared_request
        finally:
            with self._lock:
                self._running -= 1


@cache
def _core() -> ov.Core:
    """Return the OpenVINO core of this process, which is never destroyed.

    On CPUs with AMX a core sets an alternate signal stack for the thread that creates it. If another thread
    destroys the core, the next signal ends the process with SIGSEGV (OpenVINO 2026.4).
    """
    return ov.Core()


def compile_model(
    model: Model, precision: Precision, *, streams: int | None = None, threads: int | None = None
) -> list[OpenVINORuntime]:
    """Compile `model` and return `streams` runtimes, which use `threads` threads in total.

    The defaults of both are OpenVINO's. A batch that runs alone uses all threads, for the lowest latency.
    Concurrent batches use a share of the threads each, for the highest throughput. By default, a model
    with little work per image gets one stream: see `has_small_images`.

    Converted and compiled models are cached in the user's cache directory for later starts. Raises
    DeviceUnavailableError if the CPU does not support the precision, ModelLoadError if the OpenVINO model
    cannot be read or the network cannot be converted.
    """
    core = _core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise DeviceUnavailableError("this CPU does not support bf16; use fp32")
    # int8 models compute their other layers in the fastest floating-point precision.
    float_precision = (
        precision if precision in _PRECISION_HINTS else ("bf16" if "BF16" in capabilities else "fp32")
    )
    options: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[float_precision],
        "INFERENCE_NUM_THREADS": threads or 0,
    }
    compiler = _Compiler(core, model)
    exclusive = compiler.compile({**options, "NUM_STREAMS": 1})
    exclusive_request, length = exclusive.create_infer_request(), embedding_size(exclusive)
    # If the first inferences of a process come from two threads at once, they can deadlock on the GIL and a
    # C++ static of OpenVINO's Python binding.
    size = model.preprocessing.crop
    exclusive_request.infer([np.zeros((1, size, size, 3), np.uint8)])
    if streams is None and has_small_images(model, threads):
        streams = 1
    if streams == 1:
        return [OpenVINORuntime(precision, length, _StreamArbiter(exclusive_request), exclusive_request)]
    if streams is None:
        shared = compiler.compile({**options, "PERFORMANCE_HINT": "THROUGHPUT"})
    else:
        shared = compiler.compile({**options, "NUM_STREAMS": streams})
    arbiter = _StreamArbiter(exclusive_request)
    count = int(shared.get_property("NUM_STREAMS"))
    return [OpenVINORuntime(precision, length, arbiter, shared.create_infer_request()) for _ in range(count)]


def convert(network: nn.Module, preprocessing: Preprocessing) -> ov.Model:
    """Convert a network to an OpenVINO model: [N, S, S, 3] uint8 -> probabilities [N, classes] fp32, any N.

    Raises ModelLoadError if the network cannot be converted.
    """
    size = preprocessing.crop
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with torch.no_grad():
            exported = torch.export.export(
                _EndToEndModule(network, preprocessing).eval(), (example,), dynamic_shapes=({0: batch},)
            )
        return ov.convert_model(exported, input=[ov.PartialShape([-1, size, size, 3])])
    except Exception as error:  # torch.export's errors have no common base class; messages can be pages long
        raise ModelLoadError(f"OpenVINO cannot convert the network: {first_line(error)}") from error


def to_openvino(model: Model) -> ov.Model:
    """Return any model as an OpenVINO model, as `convert` does. Raises ModelLoadError."""
    if isinstance(model.program, nn.Module):
        return convert(model.program, model.preprocessing)
    return _read(_core(), model)


def serialize(model: ov.Model) -> OpenVINOModel:
    """Return the model's files for a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        topology = Path(folder) / "model.xml"
        ov.save_model(model, topology, compress_to_fp16=False)
        return OpenVINOModel(topology.read_bytes(), topology.with_suffix(".bin").read_bytes())


class _EndToEndModule(nn.Module):
    """A network with normalization and softmax, so that OpenVINO can fuse them with the layers."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        mean, std = normalization(preprocessing)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """[N, S, S, 3] uint8 -> probabilities [N, classes]."""
        logits: Tensor = self.network((images.permute(0, 3, 1, 2) - self.mean) / self.std)
        return logits.softmax(1)


class _Compiler:
    """Compiles one model with different options; converts a network once and caches the result."""

    def __init__(self, core: ov.Core, model: Model) -> None:
        self._core = core
        self._model = model
        self._ir_path: Path | None = None
        if not isinstance(model.program, nn.Module):
            self._converted = _read(core, model)
            add_embedding_output(self._converted)
            return
        topology = cached_topology(model.network, model.preprocessing)
        try:
            if not topology.exists():
                write_to_cache(self._convert(), topology)
            self._ir_path = topology
        except OSError as error:
            self._reconvert(error)

    def compile(self, options: Mapping[str, str | int]) -> ov.CompiledModel:
        """Compile with OpenVINO's properties `options`."""
        if self._ir_path is not None:
            try:
                cache = {"CACHE_DIR": str(self._ir_path.parent)}
                return self._core.compile_model(self._ir_path, "CPU", {**options, **cache})
            except (OSError, RuntimeError) as error:  # RuntimeError: the cached file is damaged
                self._reconvert(error)
        return self._core.compile_model(self._converted, "CPU", dict(options))

    def _reconvert(self, error: Exception) -> None:
        _log.warning("cache_unusable", reason=str(error))
        self._ir_path, self._converted = None, self._convert()

    def _convert(self) -> ov.Model:
        converted = convert(self._model.network, self._model.preprocessing)
        add_embedding_output(converted)
        return converted


def _read(core: ov.Core, model: Model) -> ov.Model:
    size, classes = model.preprocessing.crop, len(model.labels)
    files = model.openvino_model
    try:
        if files is None:
            loaded = core.read_model(end_to_end_graph(model), b"")
        else:
            loaded = core.read_model(files.topology, files.weights)
        shapes = [str(port.get_partial_shape()) for port in (*loaded.inputs, *loaded.outputs)]
    except RuntimeError as error:
        raise ModelLoadError(f"OpenVINO cannot read the model {model.name!r}: {error}") from error
    expected = [f"[?,{size},{size},3]", f"[?,{classes}]"]
    if shapes != expected:
        raise ModelLoadError(
            f"the model {model.name!r} has the shapes {' '.join(shapes)}, not {' '.join(expected)}"
        )
    return loaded
