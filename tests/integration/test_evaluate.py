"""`resnet-service evaluate` and `activations` with the model cifar10."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image, ImageChops
from torchvision.models import get_model

from resnet_service.cli import main
from resnet_service.errors import UnsupportedModelError
from resnet_service.images import Preprocessing
from resnet_service.images.file_names import SUFFIXES
from resnet_service.models import Model, checkpoint, load_model
from resnet_service.models.networks import NETWORKS
from resnet_service.training import plots
from resnet_service.training.activations import draw_activations
from resnet_service.training.evaluate import Confusion, Evaluation, confusion_matrix
from tests.support.images import encode, make_image
from tests.support.server import only_once

pytestmark = only_once


pytest.importorskip("matplotlib", reason="needs the extra train")

TENCH, SAMOYED = 0, 258


def evaluate(data: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, ["evaluate", "--model", "cifar10", "--data", str(data), *flags])


def activations(image: Path, output: Path, *flags: str) -> Result:
    arguments = [str(image), "--model", "cifar10", "--output", str(output), *flags]
    return CliRunner().invoke(main, ["activations", *arguments])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image.png"
    path.write_bytes(encode(make_image(), "PNG"))
    return path


@pytest.fixture(scope="module")
def cifar10() -> Model:
    return load_model("cifar10")


def test_confusion_matrix_counts_classes_by_prediction() -> None:
    """Rows are classes and columns predictions; a class without images has no accuracy."""
    confusion = confusion_matrix(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    evaluation = Evaluation(confusion, ("a", "b", "c"))
    assert evaluation.accuracy == 0.75
    assert evaluation.accuracy_by_class() == pytest.approx({"a": 2 / 3, "b": 1.0})


def test_most_frequent_confusions_come_first() -> None:
    """Correct predictions are not confusions; of two classes with one label, each has its index."""
    confusion = torch.tensor([[9, 1, 0], [0, 9, 2], [0, 1, 9]])
    evaluation = Evaluation(confusion, ("a", "b", "b"))
    assert evaluation.most_frequent_confusions() == [
        Confusion("b (1)", "b (2)", 2),
        Confusion("a", "b (1)", 1),
        Confusion("b (2)", "b (1)", 1),
    ]
    assert evaluation.most_frequent_confusions(limit=1) == [Confusion("b (1)", "b (2)", 2)]
    assert list(evaluation.accuracy_by_class()) == ["a", "b (1)", "b (2)"]


@pytest.fixture(scope="module")
def imagenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return weights of squeezenet1_1 with which tench is the best class of every image, Samoyed the next."""
    network = get_model("squeezenet1_1")
    state = network.state_dict()
    state["classifier.1.bias"] = torch.zeros(1000)
    for index, value in ((TENCH, 30.0), (SAMOYED, 20.0)):
        state["classifier.1.bias"][index] = value
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros_like(state["classifier.1.weight"])}, path)
    return path


def evaluate_imagenet(data: Path, weights: Path, *flags: str) -> Result:
    command = ["evaluate", "--model", "squeezenet1_1", "--weights", str(weights), "--data", str(data)]
    return CliRunner().invoke(main, [*command, *flags])


def write_classes(folder: Path, image: Path, **counts: int) -> None:
    """Write as many copies of `image` as named into each class folder."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(image.read_bytes())


def test_folders_are_named_by_wordnet_id_or_label(
    image: Path, imagenet_weights: Path, tmp_path: Path
) -> None:
    """Ids and labels in any spelling are mixed, for few of 1,000 classes; --weights loads the weights."""
    write_classes(tmp_path / "val", image, n01440764=1, SAMOYED=2, n02102040=1)
    result = evaluate_imagenet(tmp_path, imagenet_weights, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["images"] == 4
    assert content["accuracy"] == 0.25
    assert content["top5_accuracy"] >= 0.75
    assert content["accuracy_by_class"] == {"tench": 1, "English springer": 0, "Samoyed": 0}
    assert content["confusions"] == [
        {"label": "Samoyed", "predicted": "tench", "count": 2},
        {"label": "English springer", "predicted": "tench", "count": 1},
    ]
    text = evaluate_imagenet(tmp_path, imagenet_weights).stdout
    assert re.search(r"Samoyed +tench +2\nEnglish springer +tench +1\n", text)
    assert re.search(r"squeezenet1_1 on .*: top-1 25.00%, top-5 (75|100).00% of 4 images", text)


def test_model_without_more_than_five_classes_has_no_top_5_accuracy(image: Path, tmp_path: Path) -> None:
    labels = ("a", "b", "c", "d", "e")
    state = NETWORKS["lenet"](5).state_dict()
    preprocessing = Preprocessing(32, 32, (0, 0, 0), (1, 1, 1))
    path = tmp_path / "five.safetensors"
    checkpoint.save_checkpoint(checkpoint.Checkpoint("lenet", labels, preprocessing, state), path)
    write_classes(tmp_path / "data", image, a=1)
    command = ["evaluate", "--model", str(path), "--data", str(tmp_path / "data")]
    assert json.loads(CliRunner().invoke(main, [*command, "--json"]).stdout)["top5_accuracy"] is None
    assert "top-5" not in CliRunner().invoke(main, command).stdout


def test_evaluate_prints_the_classes_that_have_images(image: Path, tmp_path: Path) -> None:
    """Some classes may be missing, and an unreadable image is skipped and named."""
    (tmp_path / "test" / "dog").mkdir(parents=True)
    (tmp_path / "test" / "dog" / "a.png").write_bytes(image.read_bytes())
    (tmp_path / "test" / "dog" / "b.png").write_bytes(b"broken")
    result = evaluate(tmp_path)
    assert result.exit_code == 0, result.output
    assert "of 1 images" in result.output
    assert "skipped" in result.output
    assert re.findall(r"^(\w+) +[\d.]+%$", result.stdout, re.MULTILINE) == ["dog"]


def test_labeled_folders_have_the_same_images_as_other_folders(image: Path, tmp_path: Path) -> None:
    """The list of suffixes is that of `classify`; a file with another name is named and counted."""
    folder = tmp_path / "dog"
    folder.mkdir()
    for suffix in chain.from_iterable(SUFFIXES.values()):
        (folder / f"image{suffix}").write_bytes(image.read_bytes())
    (folder / "notes.txt").write_bytes(image.read_bytes())
    result = evaluate(tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == sum(map(len, SUFFIXES.values()))
    assert list(json.loads(result.stdout)["unreadable"]) == [str(folder / "notes.txt")]
    text = evaluate(tmp_path).stderr
    assert f"skipped {folder / 'notes.txt'}: not the name of an image" in text
    assert "skipped 1 file in total" in text


@pytest.mark.parametrize(("flags", "images"), [([], 10), (["--test-share", "0.2"], 2), (["--mirrored"], 10)])
def test_evaluate_selects_the_share_of_images(
    image: Path, tmp_path: Path, flags: list[str], images: int
) -> None:
    """--test-share selects a share of each class; without it, all images are used."""
    for label in ("dog", "cat"):
        (tmp_path / label).mkdir()
        for number in range(5):
            (tmp_path / label / f"{number}.png").write_bytes(image.read_bytes())
    result = evaluate(tmp_path, "--json", *flags)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == images


def test_class_that_the_model_does_not_have_is_an_error(image: Path, tmp_path: Path) -> None:
    (tmp_path / "test" / "unicorn").mkdir(parents=True)
    (tmp_path / "test" / "unicorn" / "a.png").write_bytes(image.read_bytes())
    for folder in (tmp_path, tmp_path / "test" / "unicorn"):
        result = evaluate(folder)
        assert result.exit_code == 1
        assert "unicorn" in result.output


def test_activation_maps_are_drawn_for_each_layer(image: Path, cifar10: Model, tmp_path: Path) -> None:
    """By default conv1 and layer1 to layer3, each as a grid of its channels; --layer selects others."""
    result = activations(image, tmp_path)
    assert result.exit_code == 0, result.output
    names = ["conv1.png", "layer1.png", "layer2.png", "layer3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    width = cifar10.network.state_dict()["conv1.weight"].shape[0]
    assert f"layer3.png: [{4 * width}, 8, 8]" in result.output
    maps = [Image.open(tmp_path / f"{name}.png").convert("RGB") for name in ("conv1", "layer1")]
    below_title = (0, maps[0].height // 4, maps[0].width, maps[0].height)
    colors = [{color for _, color in one.crop(below_title).getcolors(1 << 24) or []} for one in maps]
    assert all(len(distinct) > 200 for distinct in colors)  # viridis has 256; an empty map has one
    assert ImageChops.difference(maps[0].crop(below_title), maps[1].crop(below_title)).getbbox() is not None
    assert activations(image, tmp_path, "--layer", "layer4.0.bn1").exit_code == 0
    assert (tmp_path / "layer4.0.bn1.png").exists()


@pytest.mark.parametrize(
    ("layer", "message"), [("conv9", "has no layer 'conv9'"), ("fc", "does not have channels")]
)
def test_layer_without_activation_maps_is_an_error(
    image: Path, tmp_path: Path, layer: str, message: str
) -> None:
    result = activations(image, tmp_path, "--layer", layer)
    assert result.exit_code == 1
    assert message in result.output


def test_network_without_default_layers_needs_layer_names(cifar10: Model, tmp_path: Path) -> None:
    """The error lists the layers that it has."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    model = Model("plain", network, cifar10.labels, cifar10.preprocessing, "plain.pth")
    crop = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
    with pytest.raises(UnsupportedModelError, match="choose one with --layer: 0"):
        draw_activations(model, crop, tmp_path)


def test_output_that_cannot_be_written_is_an_error(image: Path) -> None:
    result = activations(image, image / "maps")
    assert result.exit_code == 1
    assert "cannot be written" in result.output


def test_class_name_with_dollar_signs_can_be_plotted(tmp_path: Path) -> None:
    """Matplotlib does not parse it as a formula."""
    plots.confusion_matrix(torch.ones(2, 2, dtype=torch.int64), ("$^$", "light"), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()
