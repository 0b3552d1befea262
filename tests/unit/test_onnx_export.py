"""`resnet-service export`, and `quantize` to ONNX: the file classifies photographs as the original does."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torchvision.models import resnet18

from resnet_service.cli import main
from resnet_service.images import Crop, Preprocessing, decode_image
from resnet_service.images.examples import example_photographs
from resnet_service.models import CIFAR10, Model, load_model, weights_path
from resnet_service.models.onnx import save_onnx
from resnet_service.models.onnx_export import export_onnx
from resnet_service.runtimes.selection import RuntimeName
from tests.support import PHOTOGRAPHS
from tests.support.runtimes import create_runtime, probabilities

onnx = pytest.importorskip("onnx", reason="requires the extra onnx")
for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="requires the extra onnx")

from tests.support.onnx import small_graph, write  # noqa: E402

RUNTIMES: list[RuntimeName] = ["openvino", "onnxruntime"]
NAMES = ("cifar10", "efficientnet_lite0", "resnet18")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def crops_for(model: Model) -> list[Crop]:
    """Return the photographs of the package as the model sees them."""
    return [decode_image(data, model.preprocessing) for data in example_photographs().values()]


def random_resnet18() -> Model:
    """Return torchvision's ResNet-18 with random weights."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network = resnet18(num_classes=10).eval()
    return Model("resnet18", network, tuple("abcdefghij"), preprocessing, "random weights")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Path]]:
    """Return models by name, each with the path of its ONNX file."""
    folder = tmp_path_factory.mktemp("exported")
    models = [*map(load_model, NAMES[:2]), random_resnet18()]
    pairs = {model.name: (model, folder / f"{model.name}.onnx") for model in models}
    for model, path in pairs.values():
        save_onnx(export_onnx(model), path)
    return pairs


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NAMES)
def test_exported_model_equals_the_original(
    pairs: dict[str, tuple[Model, Path]], name: str, runtime: RuntimeName
) -> None:
    """On photographs, probabilities differ by less than 1e-4 and the five best classes are the same."""
    original, path = pairs[name]
    exported = load_model(str(path))
    assert (exported.labels, exported.preprocessing) == (original.labels, original.preprocessing)
    crops, classes = crops_for(original), len(original.labels)
    reference, executor = create_runtime(original, "torch", "fp32"), create_runtime(exported, runtime, "fp32")
    torch.testing.assert_close(
        probabilities(executor, crops, classes), probabilities(reference, crops, classes), rtol=0, atol=1e-4
    )
    assert executor.run(crops, 5).class_ids.tolist() == reference.run(crops, 5).class_ids.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_exported_model_has_the_same_operations(pairs: dict[str, tuple[Model, Path]], name: str) -> None:
    """The counted operations of the file are those of the network, with grouped convolutions as well."""
    original, path = pairs[name]
    assert load_model(str(path)).operations == original.operations


def test_file_contains_nothing_of_the_machine(pairs: dict[str, tuple[Model, Path]]) -> None:
    """PyTorch's exporter writes the paths of the source files into each node; they are removed."""
    content = pairs["cifar10"][1].read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"stack_trace" not in content


def test_command_writes_a_file_that_other_commands_read(tmp_path: Path) -> None:
    """`export`, then `inspect`, `classify`, `evaluate` and `bench` with the file."""
    path = tmp_path / "exported.onnx"
    result = run("export", "--model", CIFAR10, "--output", path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "output": str(path),
        "file_bytes": path.stat().st_size,
        "exported_from": CIFAR10,
    }
    summary = json.loads(run("inspect", "--model", path, "--json").stdout)
    assert summary["name"] == "exported"
    assert summary["layers"]["Conv"] == 20
    weights = sum(value.numel() for value in load_model(CIFAR10).network.parameters())
    assert summary["parameters"] == pytest.approx(weights, rel=0.01)
    for runtime in RUNTIMES:
        result = run("classify", PHOTOGRAPHS / "cat.jpg", "--model", path, "--runtime", runtime)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[1].split()[:2] == ["1", "cat"]
        assert f"exported on cpu, {'bf16' if 'bf16' in result.output else 'fp32'}, {runtime}" in result.output
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "cat.jpg").write_bytes((PHOTOGRAPHS / "cat.jpg").read_bytes())
    result = run("evaluate", "--model", path, "--data", tmp_path / "data", "--runtime", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "onnxruntime: top-1 100.00%, top-5 100.00% of 1 images" in result.output
    result = run(
        *("bench", "--model", path, "--runtime", "openvino,onnxruntime", "--precision", "fp32"),
        *("--batch-sizes", 2, "--iterations", 1, "--json"),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["model"]
    assert [row["variant"]["runtime"] for row in rows] == RUNTIMES


def test_foreign_file_and_its_json_become_one_file(tmp_path: Path) -> None:
    """The exported file needs no JSON file beside it, and keeps the metadata that it had."""
    proto = small_graph()
    onnx.helper.set_model_props(proto, {"author": "somebody"})
    source, target = write(tmp_path / "small.onnx", proto), tmp_path / "whole.onnx"
    result = run("export", "--model", source, "--output", target)
    assert result.exit_code == 0, result.output
    original, exported = load_model(str(source)), load_model(str(target))
    assert (exported.labels, exported.preprocessing) == (original.labels, original.preprocessing)
    assert {prop.key: prop.value for prop in onnx.load(target).metadata_props}["author"] == "somebody"


def test_other_suffix_is_a_usage_error(tmp_path: Path) -> None:
    """A file without the suffix would not be recognized as ONNX."""
    result = run("export", "--model", "nonsense", "--output", tmp_path / "model.safetensors")
    assert result.exit_code == 2
    assert "must end in .onnx" in result.output


def test_missing_exporter_is_reported_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("resnet_service.models.onnx_export")
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    result = run("export", "--model", "nonsense", "--output", tmp_path / "model.onnx")
    assert result.exit_code == 1
    assert "requires onnxscript: make install EXTRAS=onnx" in result.output


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with parts of the photographs, to calibrate on."""
    folder = tmp_path_factory.mktemp("images")
    from PIL import Image

    for path in PHOTOGRAPHS.glob("*.jpg"):
        with Image.open(path) as image:
            width, height = image.size
            for number in range(4):
                left, top = (number % 2) * width // 3, (number // 2) * height // 3
                image.crop((left, top, width, height)).save(folder / f"{path.stem}{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def quantized(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an int8 ONNX file of cifar10."""
    pytest.importorskip("nncf", reason="requires the extra quantize")
    path = tmp_path_factory.mktemp("quantized") / "int8.onnx"
    result = run("quantize", "--model", CIFAR10, "--data", images, "--output", path, "--json")
    assert result.exit_code == 0, result.output
    # For two of the 16 parts of photographs, the two best classes differ by less than 0.07.
    assert json.loads(result.stdout)["agreement"] >= 14 / 16
    return path


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_quantized_file_agrees_with_the_original(quantized: Path, runtime: RuntimeName) -> None:
    """Both runtimes compute in int8, and the best class of each photograph is the original's."""
    original, model = load_model(CIFAR10), load_model(str(quantized))
    assert model.is_quantized
    assert (model.labels, model.preprocessing) == (original.labels, original.preprocessing)
    assert model.operations == original.operations
    crops = crops_for(original)
    executor, reference = create_runtime(model, runtime, "int8"), create_runtime(original, "torch", "fp32")
    actual, expected = probabilities(executor, crops), probabilities(reference, crops)
    assert actual.argmax(1).tolist() == expected.argmax(1).tolist()
    assert 0 < float((actual - expected).abs().max()) < 0.25


def test_quantized_file_is_not_quantized_again(quantized: Path, images: Path, tmp_path: Path) -> None:
    result = run("quantize", "--model", quantized, "--data", images, "--output", tmp_path / "again.onnx")
    assert result.exit_code == 1
    assert "is quantized already" in result.output


def test_onnx_file_becomes_a_quantized_checkpoint(
    pairs: dict[str, tuple[Model, Path]], images: Path, tmp_path: Path
) -> None:
    """`quantize` writes OpenVINO's format for an output with another suffix; it cannot be exported."""
    pytest.importorskip("nncf", reason="requires the extra quantize")
    original, source = pairs[CIFAR10]
    path = tmp_path / "int8.safetensors"
    result = run("quantize", "--model", source, "--data", images, "--output", path)
    assert result.exit_code == 0, result.output
    crops = crops_for(original)
    actual = probabilities(create_runtime(load_model(str(path)), "openvino", "int8"), crops)
    expected = probabilities(create_runtime(original, "torch", "fp32"), crops)
    assert np.array_equal(actual.argmax(1), expected.argmax(1))
    result = run("export", "--model", path, "--output", tmp_path / "int8.onnx")
    assert result.exit_code == 1
    assert "quantize the model that it was quantized from with --output FILE.onnx" in result.output
    assert not (tmp_path / "int8.onnx").exists()


def test_checkpoint_of_the_trainer_is_exported(tmp_path: Path) -> None:
    """`export` takes what `serve` takes; the labels come from the checkpoint."""
    path = tmp_path / "mine.onnx"
    result = run("export", "--model", weights_path(CIFAR10), "--output", path)
    assert result.exit_code == 0, result.output
    assert load_model(str(path)).labels == load_model(CIFAR10).labels
