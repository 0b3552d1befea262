"""`resnet-service quantize`: an int8 model out of images, and what it says of bad ones."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from resnet_service.cli import main
from resnet_service.errors import ModelLoadError
from resnet_service.models import checkpoint, load_model
from tests.support.images import encode, make_image

pytest.importorskip("nncf", reason="needs the extra quantize")


def quantize(folder: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(
        main, ["quantize", "bundled", "--images", str(folder), "--out", str(out), *options]
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image, another one in a folder in it, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "a.jpg").write_bytes(encode(make_image()))
    (folder / "more").mkdir()
    (folder / "more" / "b.png").write_bytes(encode(make_image(64, 64), "PNG"))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def quantized(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "small.safetensors"
    result = quantize(images, out)
    assert result.exit_code == 0, result.output
    assert "of 2 images" in result.output
    assert "notes.txt" in result.output
    return out


def test_it_is_a_model_like_any_other(quantized: Path, tmp_path: Path) -> None:
    """The file is a third of the fp16 one, says what it is, and is evaluated by its path, in int8."""
    bundled = load_model("bundled")
    loaded = load_model(str(quantized))
    assert (loaded.name, loaded.labels) == ("small", bundled.labels)
    assert loaded.preprocessing == bundled.preprocessing
    assert checkpoint.load_checkpoint(quantized).training["quantized_from"] == "bundled"
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.png").write_bytes(encode(make_image(), "PNG"))
    result = CliRunner().invoke(main, ["evaluate", str(quantized), "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "int8 on cpu" in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--precision", "bf16"], "int8 is the precision"), (["--device", "tpu"], "no device")],
)
def test_what_it_cannot_do_is_a_clear_error(
    quantized: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    """Another precision than int8 is rejected."""
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.png").write_bytes(encode(make_image(), "PNG"))
    result = CliRunner().invoke(main, ["evaluate", str(quantized), "--data", str(tmp_path), *options])
    assert result.exit_code == 1
    assert reason in result.output


def test_what_needs_the_network_says_so(quantized: Path, tmp_path: Path) -> None:
    """Activation maps need a network, of which quantizing leaves a graph only."""
    (tmp_path / "image.jpg").write_bytes(encode(make_image()))
    command = ["activations", str(quantized), str(tmp_path / "image.jpg"), "--out", str(tmp_path / "maps")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "is quantized" in result.output


def test_half_a_graph_is_rejected(quantized: Path, tmp_path: Path) -> None:
    """A file with the topology and no weights is no model."""
    loaded = checkpoint.load_checkpoint(quantized)
    state = {key: value for key, value in load_file(quantized).items() if key.endswith("xml")}
    checkpoint.save_checkpoint(
        checkpoint.Checkpoint(loaded.network, loaded.labels, loaded.preprocessing, state),
        tmp_path / "half.safetensors",
    )
    with pytest.raises(ModelLoadError, match="and no others"):
        load_model(str(tmp_path / "half.safetensors"))


def test_no_images_is_a_clear_error(tmp_path: Path) -> None:
    """An empty folder, or one of which nothing can be read, writes nothing."""
    out = tmp_path / "out.safetensors"
    (tmp_path / "images").mkdir()
    assert "no images" in quantize(tmp_path / "images", out).output
    (tmp_path / "images" / "a.jpg").write_bytes(b"broken")
    result = quantize(tmp_path / "images", out)
    assert result.exit_code == 1
    assert "a.jpg" in result.output
    assert not out.exists()


def test_a_folder_that_is_not_there_is_told_before_the_work(images: Path, tmp_path: Path) -> None:
    """Where the result cannot be written nothing is begun."""
    result = quantize(images, tmp_path / "nowhere" / "out.safetensors")
    assert result.exit_code == 2
    assert "nowhere" in result.output
