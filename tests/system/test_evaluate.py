"""Looking at a trained model: its accuracy on labeled images and its activation maps."""

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, ImageChops

from resnet_service.cli import main
from resnet_service.models import checkpoint
from tests.support import REPOSITORY
from tests.support.images import encode, make_image


@pytest.fixture(scope="module")
def cifar(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 30 test images of each of CIFAR-10's classes."""
    archive = real_images / "cifar10-test.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    folder = tmp_path_factory.mktemp("cifar")
    taken: dict[str, int] = {}
    with tarfile.open(archive) as file:
        for member in file:
            label = Path(member.name).parent.name
            if member.isfile() and taken.setdefault(label, 0) < 30:
                taken[label] += 1
                file.extract(member, folder, filter="data")
    return folder


def test_the_bundled_model_does_what_its_card_claims(cifar: Path) -> None:
    """On real test images the accuracy is near the card's, and mirroring does not hurt."""
    claimed = checkpoint.load_checkpoint(
        REPOSITORY / "service/resnet_service/models/bundled/cifar10.safetensors"
    ).training["accuracy"]
    for flags in ([], ["--mirrored"]):
        result = CliRunner().invoke(main, ["evaluate", "bundled", "--data", str(cifar), "--json", *flags])
        assert result.exit_code == 0, result.output
        facts = json.loads(result.stdout)
        assert facts["images"] == 300
        assert facts["accuracy"] == pytest.approx(claimed, abs=0.05)
        assert len(facts["accuracy_by_class"]) == 10


def test_evaluate_for_people(tmp_path: Path) -> None:
    """Some of the classes may be missing, and a broken image is skipped and named."""
    (tmp_path / "test" / "dog").mkdir(parents=True)
    (tmp_path / "test" / "dog" / "a.png").write_bytes(encode(make_image(), "PNG"))
    (tmp_path / "test" / "dog" / "b.png").write_bytes(b"broken")
    result = CliRunner().invoke(main, ["evaluate", "bundled", "--data", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "of 1 images" in result.output
    assert "skipped" in result.output
    assert "\ncat " not in result.output


def test_evaluate_with_a_class_the_model_does_not_know(tmp_path: Path) -> None:
    """A folder that is none of the model's classes is an error, not a wrong answer."""
    (tmp_path / "test" / "unicorn").mkdir(parents=True)
    (tmp_path / "test" / "unicorn" / "a.png").write_bytes(encode(make_image(), "PNG"))
    for folder in (tmp_path, tmp_path / "test" / "unicorn"):
        result = CliRunner().invoke(main, ["evaluate", "bundled", "--data", str(folder)])
        assert result.exit_code == 1
        assert "unicorn" in result.output


def test_activation_maps(tmp_path: Path) -> None:
    """A grid of channels for each of conv1 to layer3, with its shape; other layers by name."""
    (tmp_path / "image.png").write_bytes(encode(make_image(), "PNG"))
    command = ["activations", "bundled", str(tmp_path / "image.png"), "--out", str(tmp_path / "maps")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "conv1.png",
        "layer1.png",
        "layer2.png",
        "layer3.png",
    ]
    width = (
        checkpoint.load_checkpoint(REPOSITORY / "service/resnet_service/models/bundled/cifar10.safetensors")
        .state["conv1.weight"]
        .shape[0]
    )
    assert f"layer3.png: [{4 * width}, 8, 8]" in result.output
    maps = [Image.open(tmp_path / "maps" / f"{name}.png").convert("RGB") for name in ("conv1", "layer1")]
    middle = (0, maps[0].height // 4, maps[0].width, maps[0].height)  # below the title
    colors = [{color for _, color in image.crop(middle).getcolors(1 << 24) or []} for image in maps]
    assert all(len(found) > 200 for found in colors)  # of viridis' 256, which an empty map has one of
    assert ImageChops.difference(maps[0].crop(middle), maps[1].crop(middle)).getbbox() is not None
    assert CliRunner().invoke(main, [*command, "--layer", "layer4.0.bn1"]).exit_code == 0
    assert (tmp_path / "maps" / "layer4.0.bn1.png").exists()


@pytest.mark.parametrize(("layer", "message"), [("conv9", "has no layer 'conv9'"), ("fc", "is no map")])
def test_layers_that_cannot_be_drawn(tmp_path: Path, layer: str, message: str) -> None:
    """An unknown layer, and one without maps, is a message."""
    (tmp_path / "image.png").write_bytes(encode(make_image(), "PNG"))
    command = [
        "activations",
        "bundled",
        str(tmp_path / "image.png"),
        "--out",
        str(tmp_path),
        "--layer",
        layer,
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert message in result.output
