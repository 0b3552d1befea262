"""Run a network with OpenVINO on the CPU: in bf16 faster than PyTorch, and the only way in int8."""

import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor, nn

from resnet_service.devices import Precision
from resnet_service.errors import DeviceOutOfMemoryError, DeviceUnavailableError, ModelLoadError
from resnet_service.files import app_cache_dir
from resnet_service.images import Crop, Preprocessing
from resnet_service.models import Model
from resnet_service.models.openvino_ir import OpenVINOModel
from resnet_service.runtimes import DeviceMemory, TopKResult, normalization, stack_crops

# Converting a network reports to OpenVINO's makers, unless each user has opted out in a file of their own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: it cannot be imported

import openvino as ov  # noqa: E402

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_HINTS: Final[dict[str, str]] = {"fp32": "f32", "bf16": "bf16"}
_OUT_OF_MEMORY: Final = ("bad_alloc", "allocate")
_FAST_MODEL_S: Final = 0.005
_EXCLUSIVE_AFTER_S: Final = 0.2


class OpenVINORuntime:
    """One of the batches that run at a time, with the same weights as the others. Made by `compile_model`."""

    name: str = "openvino"
    device: str = "cpu"

    def __init__(
        self, precision: Precision, streams: "_StreamArbiter", shared_request: ov.InferRequest
    ) -> None:
        self.precision: str = precision
        self._streams = streams
        self._shared_request = shared_request

    def run(self, crops: Sequence[Crop], k: int) -> TopKResult:
        """Classify a batch: see `Runtime.run`."""
        batch = stack_crops(crops).numpy()
        with self._streams.request(self._shared_request) as request:
            try:
                answer = request.infer([batch], share_inputs=True, share_outputs=True)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
                    raise DeviceOutOfMemoryError("the device is out of memory") from error
                raise
            return _best(answer[0], k)  # copies: what the request holds, the next batch overwrites

    def memory(self) -> DeviceMemory | None:
        """Return None: a CPU has no memory of its own."""
        return None


def _best(probabilities: npt.NDArray[np.float32], k: int) -> TopKResult:
    best = np.argpartition(-probabilities, k - 1, axis=1)[:, :k]
    ranked = np.take_along_axis(best, np.argsort(-np.take_along_axis(probabilities, best, 1), axis=1), 1)
    return TopKResult(ranked, np.take_along_axis(probabilities, ranked, 1))


class _StreamArbiter:
    """How many batches are at work, from several threads: one that is alone gets all the cores."""

    def __init__(self, exclusive_request: ov.InferRequest) -> None:
        self._exclusive_request = exclusive_request
        self._lock = Lock()
        self._running = 0
        self._last_shared = -math.inf

    @contextmanager
    def request(self, shared_request: ov.InferRequest) -> Iterator[ov.InferRequest]:
        """Give the request to run a batch with, until the block ends; `own` is for a share of the cores."""
        with self._lock:
            self._running += 1
            now = time.monotonic()
            if self._running > 1:
                self._last_shared = now
            # Between two batches of a busy service there are moments without any.
            calm = now - self._last_shared > _EXCLUSIVE_AFTER_S
        try:
            yield self._exclusive_request if calm else shared_request
        finally:
            with self._lock:
                self._running -= 1


def compile_model(
    model: Model, precision: Precision, *, streams: int | None = None, threads: int | None = None
) -> list[OpenVINORuntime]:
    """Compile `model` for `streams` batches at a time, on `threads` in all, by default OpenVINO's choice.

    A batch that is alone has all threads, for the shortest answer. Several have a share each and wait for
    none of the others' threads, for the most answers. A network that takes next to no time gets one stream
    by default: there it counts that Python handles few batches.

    What was converted and compiled once is kept in the user's cache, so that the next start is quick. Raises
    DeviceUnavailableError for a precision that this CPU does not have, ModelLoadError for a broken graph and
    for a network that cannot be converted.
    """
    core = ov.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise DeviceUnavailableError("this CPU has no bf16; use fp32")
    inner = precision if precision in _HINTS else ("bf16" if "BF16" in capabilities else "fp32")
    options: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": _HINTS[inner],
        "INFERENCE_NUM_THREADS": threads or 0,
    }
    compiler = _Compiler(core, model)
    whole = compiler.compile({**options, "NUM_STREAMS": 1})
    exclusive_request = whole.create_infer_request()
    # Whoever may ask for it: a process's first inferences must not come from two threads at once, as each can
    # come to wait for ever for what the other has, the GIL or a C++ static of OpenVINO's binding.
    seconds = _seconds(exclusive_request, model.preprocessing.crop)
    if streams is None and seconds < _FAST_MODEL_S:
        streams = 1
    if streams == 1:
        return [OpenVINORuntime(precision, _StreamArbiter(exclusive_request), exclusive_request)]
    if streams is None:
        shared = compiler.compile({**options, "PERFORMANCE_HINT": "THROUGHPUT"})
    else:
        shared = compiler.compile({**options, "NUM_STREAMS": streams})
    arbiter = _StreamArbiter(exclusive_request)
    count = int(shared.get_property("NUM_STREAMS"))
    return [OpenVINORuntime(precision, arbiter, shared.create_infer_request()) for _ in range(count)]


def _seconds(request: ov.InferRequest, size: int) -> float:
    """Return how long one image takes when nothing disturbs it."""
    image = np.zeros((1, size, size, 3), np.uint8)
    seconds = []
    for _ in range(3):  # of which the first takes longer
        started = time.perf_counter()
        request.infer([image])
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def convert(network: nn.Module, preprocessing: Preprocessing) -> ov.Model:
    """Convert to [N, S, S, 3] uint8 -> probabilities [N, classes] fp32, for any N.

    Raises ModelLoadError where that cannot be done.
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
    except Exception as error:  # torch.export has no common class for what it cannot do
        reason = next(iter(str(error).splitlines()), type(error).__name__)  # of pages, often
        raise ModelLoadError(f"OpenVINO cannot convert the network: {reason}") from error


def serialize(graph: ov.Model) -> OpenVINOModel:
    """Return OpenVINO's model as what a checkpoint holds."""
    with tempfile.TemporaryDirectory() as folder:
        topology = Path(folder) / "graph.xml"
        ov.save_model(graph, topology, compress_to_fp16=False)
        return OpenVINOModel(topology.read_bytes(), topology.with_suffix(".bin").read_bytes())


class _EndToEndModule(nn.Module):
    """A network from uint8 images to probabilities, so that OpenVINO can fuse what stands around it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        mean, std = normalization(preprocessing)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """[N, S, S, 3] uint8 -> [N, classes]."""
        logits: Tensor = self.network((images.permute(0, 3, 1, 2) - self.mean) / self.std)
        return logits.softmax(1)


class _Compiler:
    """Compiles one model in several ways; a network's graph is found in the cache, or put there."""

    def __init__(self, core: ov.Core, model: Model) -> None:
        self._core = core
        self._model = model
        self._ir_path: Path | None = None
        if model.openvino_model is not None:
            self._graph = _read(core, model.openvino_model, model)
            return
        folder = app_cache_dir() / "openvino" / _fingerprint(model.network, model.preprocessing)
        topology = folder / "model.xml"
        try:
            if not topology.exists():
                _cache_ir(convert(model.network, model.preprocessing), topology)
            self._ir_path = topology
        except OSError as error:
            self._reconvert(error)

    def compile(self, options: Mapping[str, str | int]) -> ov.CompiledModel:
        """Compile with OpenVINO's own options."""
        if self._ir_path is not None:
            try:
                cache = {"CACHE_DIR": str(self._ir_path.parent)}
                return self._core.compile_model(self._ir_path, "CPU", {**options, **cache})
            except (OSError, RuntimeError) as error:  # RuntimeError: what was kept is broken
                self._reconvert(error)
        return self._core.compile_model(self._graph, "CPU", dict(options))

    def _reconvert(self, error: Exception) -> None:
        _log.warning("the cache of converted networks is of no use; converting anew", reason=str(error))
        self._ir_path, self._graph = None, convert(self._model.network, self._model.preprocessing)


def _cache_ir(graph: ov.Model, topology: Path) -> None:
    folder = topology.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        ov.save_model(graph, whole / topology.name, compress_to_fp16=False)
        try:
            whole.replace(folder)  # at once, so that a kill leaves no half
        except OSError:
            if not topology.exists():  # else another process was quicker
                raise


def _fingerprint(network: nn.Module, preprocessing: Preprocessing) -> str:
    """Name what a conversion depends on: the network, its weights, the normalization and the versions."""
    digest = hashlib.sha256()
    digest.update(
        json.dumps([str(network), asdict(preprocessing), ov.__version__, torch.__version__]).encode()
    )
    for key, tensor in network.state_dict().items():
        digest.update(f"{key}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _read(core: ov.Core, graph: OpenVINOModel, model: Model) -> ov.Model:
    size, classes = model.preprocessing.crop, len(model.labels)
    try:
        read = core.read_model(graph.topology, graph.weights)
        shapes = [str(port.get_partial_shape()) for port in (*read.inputs, *read.outputs)]
    except RuntimeError as error:
        raise ModelLoadError(f"OpenVINO cannot read the graph of {model.name!r}: {error}") from error
    if shapes != [f"[?,{size},{size},3]", f"[?,{classes}]"]:
        raise ModelLoadError(f"the graph of {model.name!r} has the shapes {' '.join(shapes)}")
    return read
