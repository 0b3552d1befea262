"""`resnet-service quantize`: creates an int8 checkpoint, and reports images that cannot be read."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from resnet_service.cli import main
from resnet_service.errors import ModelLoadError
from resnet_service.images import Preprocessing
from resnet_service.models import load_model
from resnet_service.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from resnet_service.models.networks import NETWORKS
from tests.support.images import encode, make_image

pytest.importorskip("nncf", reason="requires the extra quantize")

PREPROCESSING = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
LABELS = ("cat", "dog")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a LeNet with random weights, which is quantized in seconds."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("original") / "original.safetensors"
    save_checkpoint(Checkpoint("lenet", LABELS, PREPROCESSING, NETWORKS["lenet"](2).state_dict()), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one image, one in a subfolder, and a text file."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "a.jpg").write_bytes(encode(make_image()))
    (folder / "more").mkdir()
    (folder / "more" / "b.png").write_bytes(encode(make_image(64, 64), "PNG"))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def quantized(original: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the quantized checkpoint."""
    path = tmp_path_factory.mktemp("quantized") / "small.safetensors"
    result = run("quantize", "--model", original, "--data", images, "--output", path)
    assert result.exit_code == 0, result.output
    assert "of 2 images" in result.output
    assert "notes.txt" in result.output
    return path


@pytest.fixture
def labeled_images(tmp_path: Path) -> Path:
    """Return a folder with one labeled image."""
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.png").write_bytes(encode(make_image(), "PNG"))
    return tmp_path


def test_quantized_checkpoint_is_loaded_and_evaluated(
    original: Path, quantized: Path, labeled_images: Path
) -> None:
    """The checkpoint has the original's labels and preprocessing and runs in int8."""
    model = load_model(str(quantized))
    assert (model.name, model.labels, model.preprocessing) == ("small", LABELS, PREPROCESSING)
    assert load_checkpoint(quantized).training["quantized_from"] == original.stem
    result = run("evaluate", "--model", quantized, "--data", labeled_images)
    assert result.exit_code == 0, result.output
    assert "on cpu, int8" in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--precision", "bf16"], "supports only int8"),
        (["--runtime", "torch"], "requires --runtime openvino"),
        (["--device", "tpu"], "unknown device"),
    ],
)
def test_unsupported_options_are_rejected(
    quantized: Path, labeled_images: Path, options: list[str], reason: str
) -> None:
    """A quantized model supports only int8 and OpenVINO; the message says so."""
    result = run("evaluate", "--model", quantized, "--data", labeled_images, *options)
    assert result.exit_code == 1
    assert reason in result.output


def test_activations_of_a_quantized_model_are_rejected(quantized: Path, tmp_path: Path) -> None:
    """Activation maps require a network, which a quantized model does not have."""
    image = tmp_path / "image.jpg"
    image.write_bytes(encode(make_image()))
    result = run("activations", image, "--model", quantized, "--output", tmp_path / "maps")
    assert result.exit_code == 1
    assert "is quantized" in result.output


def test_incomplete_quantized_checkpoint_is_rejected(quantized: Path, tmp_path: Path) -> None:
    """A file with OpenVINO's topology but without its weights cannot be loaded."""
    checkpoint = load_checkpoint(quantized)
    state = {key: value for key, value in load_file(quantized).items() if key.endswith("xml")}
    path = tmp_path / "incomplete.safetensors"
    save_checkpoint(Checkpoint(checkpoint.network, LABELS, PREPROCESSING, state), path)
    with pytest.raises(ModelLoadError, match="exactly two"):
        load_model(str(path))


def test_quantized_model_is_rejected_before_the_images_are_read(quantized: Path, tmp_path: Path) -> None:
    result = run("quantize", "--model", quantized, "--data", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "is quantized already" in result.output


def test_folder_without_readable_images_is_rejected(original: Path, tmp_path: Path) -> None:
    """An empty folder, and one without readable images, are reported, and no file is written."""
    output, folder = tmp_path / "out.safetensors", tmp_path / "images"
    folder.mkdir()
    command = ("quantize", "--model", original, "--data", folder, "--output", output)
    assert "contains no images" in run(*command).output
    (folder / "a.jpg").write_bytes(b"broken")
    result = run(*command)
    assert result.exit_code == 1
    assert "a.jpg" in result.output
    assert not output.exists()
