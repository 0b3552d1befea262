"""The runtimes: that conversion, folding, batching and precision do not change the answer."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torchvision import transforms

from resnet_service import machine
from resnet_service.devices import Precision, choose_device, choose_devices, choose_precision
from resnet_service.errors import DeviceOutOfMemoryError, DeviceUnavailableError, ModelLoadError
from resnet_service.machine import available_cpus, cpu_quota, has_native_bf16
from resnet_service.models import Model, load_model
from resnet_service.models.openvino_ir import OpenVINOModel
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.pytorch import TorchRuntime
from resnet_service.runtimes.selection import RuntimeName, create_runtimes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("bundled")


@pytest.fixture(scope="module")
def crops(model: Model) -> list[npt.NDArray[np.uint8]]:
    size = model.preprocessing.crop
    random = np.random.default_rng(0)
    smooth = random.integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    return list(smooth.repeat(size // 4, 1).repeat(size // 4, 2))


def opened(model: Model, name: RuntimeName, precision: Precision) -> Runtime:
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    [runtime] = create_runtimes(model, [CPU], name=name, precision=precision, streams_per_device=1)
    assert (runtime.name, runtime.precision) == (name, precision)
    return runtime


def probabilities(runtime: Runtime, crops: list[npt.NDArray[np.uint8]], classes: int = 10) -> torch.Tensor:
    """All classes' probabilities, [N, classes], in the order of the classes."""
    best = runtime.run(crops, classes)
    assert (np.diff(best.probabilities, axis=1) <= 0).all()
    ordered = np.zeros_like(best.probabilities)
    np.put_along_axis(ordered, best.class_ids, best.probabilities, 1)
    return torch.from_numpy(ordered)


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_equals_the_plain_network(
    model: Model, crops: list[npt.NDArray[np.uint8]], name: RuntimeName
) -> None:
    """Converted, folded, normalized on the device, it answers like the network as it was loaded."""
    normalize = transforms.Normalize(model.preprocessing.mean, model.preprocessing.std)
    images = torch.stack([normalize(transforms.functional.to_tensor(crop)) for crop in crops])
    with torch.inference_mode():
        expected = model.network(images).softmax(1)
    assert torch.allclose(probabilities(opened(model, name, "fp32"), crops), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_answers_like_its_images_alone(
    model: Model, crops: list[npt.NDArray[np.uint8]], name: RuntimeName, precision: Precision
) -> None:
    """At the same precision a batched answer equals the single one to 1e-3."""
    if precision == "bf16" and name == "openvino" and not has_native_bf16():
        pytest.skip("this CPU has no bf16 of its own, which OpenVINO needs")
    runtime = opened(model, name, precision)
    batched = probabilities(runtime, crops)
    single = torch.cat([probabilities(runtime, [crop]) for crop in crops])
    assert torch.allclose(batched, single, atol=1e-3, rtol=0)


def test_the_fastest_runtime_keeps_the_answer(model: Model, crops: list[npt.NDArray[np.uint8]]) -> None:
    """What auto chooses on this CPU, bf16 where it is native, moves probabilities by little."""
    [fastest] = create_runtimes(model, [CPU], streams_per_device=1)
    assert (
        probabilities(fastest, crops) - probabilities(opened(model, "torch", "fp32"), crops)
    ).abs().max() < 0.05


def test_a_compiled_network_keeps_the_answer(
    model: Model,
    crops: list[npt.NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """--compile is PyTorch's own, answers as before, and what it compiled is kept for the next start."""
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler: apt-get install g++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    [runtime] = create_runtimes(model, [CPU], precision="fp32", compiled=True)
    assert runtime.name == "torch"
    expected = probabilities(opened(model, "torch", "fp32"), crops)
    assert torch.allclose(probabilities(runtime, crops), expected, atol=1e-4)
    assert list(tmp_path.glob("resnet-service/inductor/**/*.so"))
    with pytest.raises(DeviceUnavailableError, match="leave one of them out"):
        create_runtimes(model, [CPU], name="openvino", compiled=True)


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_instances_answer_alike(model: Model, crops: list[npt.NDArray[np.uint8]], name: RuntimeName) -> None:
    """Several instances on one device are runtimes of their own with the same weights."""
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    runtimes = create_runtimes(model, [CPU], name=name, precision="fp32", streams_per_device=2)
    expected = probabilities(runtimes[0], crops)

    def several_times(runtime: Runtime) -> list[torch.Tensor]:
        return [probabilities(runtime, crops) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:  # at the same time, each in its own thread
        together = list(pool.map(several_times, runtimes))
    for answer in (*together[0], *together[1], *several_times(runtimes[1])):
        assert torch.allclose(answer, expected, atol=1e-5)


def test_a_containers_share_of_the_cores_is_not_exceeded(
    model: Model, crops: list[npt.NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half a core allowed one thread decodes and one computes, whatever the machine has."""
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert available_cpus() == 1
    runtime = opened(model, "torch", "fp32")

    def threads_used() -> int:
        runtime.run(crops, 1)
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:  # torch keeps the number for each calling thread
        assert pool.submit(threads_used).result() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu_quota() is None


def test_what_was_converted_once_is_kept(
    model: Model, crops: list[npt.NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start finds the converted network in the cache; other weights are another network."""
    pytest.importorskip("openvino", reason="needs the extra openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def topologies() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.xml")}

    first = probabilities(opened(model, "openvino", "fp32"), crops)
    kept = topologies()
    assert len(kept) == 1
    assert torch.equal(probabilities(opened(model, "openvino", "fp32"), crops), first)
    assert topologies() == kept
    other = load_model("bundled")
    with torch.no_grad():
        next(other.network.parameters()).mul_(2)
    opened(other, "openvino", "fp32")
    assert len(topologies()) == 2


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    model: Model, crops: list[npt.NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be kept the network is converted at each start, and the log says so."""
    pytest.importorskip("openvino", reason="needs the extra openvino")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with capture_logs() as logs:
        runtime = opened(model, "openvino", "fp32")
    assert "of no use" in logs[0]["event"]
    assert len(probabilities(runtime, crops)) == len(crops)


def test_a_broken_cache_is_no_obstacle(
    model: Model, crops: list[npt.NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a kept network was damaged it is converted anew, and the log says so."""
    pytest.importorskip("openvino", reason="needs the extra openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = probabilities(opened(model, "openvino", "fp32"), crops)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with capture_logs() as logs:
        again = probabilities(opened(model, "openvino", "fp32"), crops)
    assert "of no use" in logs[0]["event"]
    assert torch.allclose(again, first)


def test_a_network_that_cannot_be_converted_is_run_by_torch(
    model: Model, crops: list[npt.NDArray[np.uint8]]
) -> None:
    """Auto falls back to PyTorch, and says so; who asked for OpenVINO is told why not."""
    pytest.importorskip("openvino", reason="needs the extra openvino")

    class Exotic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = torch.linalg.svdvals(x.mean(1))
            return values[:, :10]

    stubborn = Model("stubborn", Exotic(), model.labels, model.preprocessing, "here")
    with capture_logs() as logs:
        [runtime] = create_runtimes(stubborn, [CPU], precision="fp32", streams_per_device=1)
    assert runtime.name == "torch"
    assert "cannot run this network" in logs[-1]["event"]
    assert len(probabilities(runtime, crops)) == len(crops)
    with pytest.raises(ModelLoadError, match="convert"):
        create_runtimes(stubborn, [CPU], name="openvino", precision="fp32")


@pytest.mark.parametrize("program", [OpenVINOModel(b"no xml", b""), OpenVINOModel(b"", b"\0" * 8)])
def test_a_broken_graph_is_a_clear_error(model: Model, program: OpenVINOModel) -> None:
    """A quantized model whose graph cannot be read, or is another's, stops the start."""
    pytest.importorskip("openvino", reason="needs the extra openvino")
    broken = Model("broken", program, model.labels, model.preprocessing, "here")
    with pytest.raises(ModelLoadError, match="broken"):
        create_runtimes(broken, [CPU])


def test_the_model_given_is_left_alone(model: Model) -> None:
    """Folding and rounding happen on a copy, so that one model can be run in several precisions."""
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    TorchRuntime(model.network, model.preprocessing, CPU, "bf16")
    after = model.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_out_of_memory_is_told_apart(model: Model, crops: list[npt.NDArray[np.uint8]]) -> None:
    """An allocation that the CPU rejects is DeviceOutOfMemoryError, so that the batch can shrink."""

    class Greedy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(1 << 20, 1 << 20, 1, 1)

    runtime = TorchRuntime(Greedy(), model.preprocessing, CPU, "fp32")
    with pytest.raises(DeviceOutOfMemoryError):
        runtime.run(crops, 1)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_forced_device_is_used_or_rejected(name: str) -> None:
    """A forced device is the one that is used where it exists, and a clear error where it does not."""
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[name]:
        assert choose_device(name).type == name
    else:
        with pytest.raises(DeviceUnavailableError, match=name):
            choose_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta", "nonsense"])
def test_a_missing_device_is_a_clear_error(name: str) -> None:
    """A forced device that is not there is rejected by name, never silently replaced."""
    with pytest.raises(DeviceUnavailableError, match=name.split(":")[0]):
        choose_device(name)


def test_auto_finds_a_device_and_a_precision() -> None:
    """The choice auto always gives a device that works and a precision that it has."""
    device = choose_device("auto")
    assert device.type in ("cuda", "mps", "cpu")
    expected = "bf16" if has_native_bf16() else "fp32"
    assert choose_precision(CPU, "auto") == expected


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_a_precision_the_cpu_lacks(precision: Precision) -> None:
    """A precision the device does not have is a clear error."""
    with pytest.raises(DeviceUnavailableError, match=precision):
        choose_precision(CPU, precision)


@pytest.mark.parametrize(
    ("names", "reason"), [("cpu,cpu", "twice"), ("cpu,", "no device"), ("cpu,tpu", "tpu")]
)
def test_a_list_of_devices_is_checked(names: str, reason: str) -> None:
    """Each name is a device, and none is named twice."""
    assert choose_devices("cpu") == (CPU,)
    with pytest.raises(DeviceUnavailableError, match=reason):
        choose_devices(names)


def test_int8_needs_a_quantized_model(model: Model) -> None:
    """int8 of a float network is rejected with the command that makes one."""
    with pytest.raises(DeviceUnavailableError, match="quantize"):
        create_runtimes(model, [CPU], precision="int8")
