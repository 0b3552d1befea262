"""Labels and preprocessing of a user: files, formats, the size of the last layer, and errors."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision import models

from resnet_service.errors import ModelLoadError
from resnet_service.images import Preprocessing
from resnet_service.models import ModelSource, catalog, load_model, load_model_or_random
from resnet_service.models.checkpoint import load_checkpoint
from tests.support.models import CLASSIFIER, load_error, random_classifier, write_checkpoint

pytestmark = pytest.mark.usefixtures("torch_cache")

LABELS = ("ant", "bee", "wasp")


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Return a state dict with three classes."""
    torch.save(random_classifier(len(LABELS)).state_dict(), tmp_path / "mine.pth")
    return str(tmp_path / "mine.pth")


def write_labels(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "ant\nbee\nwasp",
        "ant\r\nbee \r\nwasp\r\n\r\n",
        "\ufeffant\nbee\nwasp",
        '["ant", "bee", "wasp"]',
        '{"2": "wasp", "0": "ant", "1": "bee"}',
        '{"wasp": 2, "ant": 0, "bee": 1}',
        '{"model_type": "resnet", "id2label": {"0": "ant", "1": "bee", "2": "wasp"}}',
    ],
    ids=["text", "Windows", "byte order mark", "list", "index to label", "label to index", "id2label"],
)
def test_labels_are_read(tmp_path: Path, weights: str, text: str) -> None:
    """The size of the last layer is that of the weights."""
    model = load_model(ModelSource(CLASSIFIER, weights, write_labels(tmp_path, text)))
    assert model.labels == LABELS
    size = model.preprocessing.crop
    with torch.inference_mode():
        assert model.network(torch.zeros(1, 3, size, size)).shape == (1, 3)
    assert model.preprocessing == catalog.get_spec(CLASSIFIER).preprocessing


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no labels"),
        ("ant\n\nwasp", "'' instead of a label for the class 1"),
        ('["ant", 1, "wasp"]', "1 instead of a label for the class 1"),
        ('["ant", "bee"', "not valid JSON"),
        ('{"0": "ant", "2": "bee", "3": "wasp"}', "none for the index 1: the indices must be 0 to 2"),
        ('{"first": "ant"}', "the key 'first', which is not the index of a class"),
        ('{"id2label": 3}', "id2label"),
        ("ant\nbee", "for 3 classes, and {path} has 2 labels"),
        ("ant\nbee\nwasp\nfly", "for 3 classes, and {path} has 4 labels"),
    ],
)
def test_unusable_labels_are_reported(tmp_path: Path, weights: str, text: str, reason: str) -> None:
    path = write_labels(tmp_path, text)
    message = load_error(ModelSource(CLASSIFIER, weights, path))
    assert reason.format(path=path) in message
    assert str(path) in message


def test_unreadable_labels_are_reported(tmp_path: Path, weights: str) -> None:
    missing = load_error(ModelSource(CLASSIFIER, weights, tmp_path / "missing.txt"))
    assert "missing.txt cannot be read: No such file" in missing
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    assert "not a text file in UTF-8" in load_error(ModelSource(CLASSIFIER, weights, tmp_path / "binary"))


def test_own_classes_need_labels(weights: str) -> None:
    """The message says how many classes the file has, and which option names them."""
    message = load_error(CLASSIFIER, weights)
    assert "the weights are for 3 classes" in message
    assert "1,000" in message
    assert "--labels FILE" in message


def test_labels_of_published_weights_are_replaced(tmp_path: Path) -> None:
    """Their number is checked, also where random weights replace the published ones."""
    labels = write_labels(tmp_path, "\n".join(f"class {index}" for index in range(1000)))
    model, _ = load_model_or_random(ModelSource(CLASSIFIER, labels=labels))
    assert model.labels[999] == "class 999"
    labels = write_labels(tmp_path, "ant\nbee")
    with pytest.raises(ModelLoadError, match=r"for 1,000 classes, and .* has 2 labels"):
        load_model_or_random(ModelSource(CLASSIFIER, labels=labels))


def test_labels_and_preprocessing_of_a_checkpoint_are_replaced(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mine.safetensors")
    names = [f"class {index}" for index in range(10)]
    labels = write_labels(tmp_path, json.dumps(names))
    source = ModelSource(str(tmp_path / "mine.safetensors"), labels=labels, preprocessing='{"resize": 40}')
    model = load_model(source)
    assert model.labels == tuple(names)
    original = load_checkpoint(tmp_path / "mine.safetensors").preprocessing
    assert model.preprocessing == replace(original, resize=40)


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "text"])
def test_fields_of_the_preprocessing_are_replaced(tmp_path: Path, weights: str, is_file: bool) -> None:
    """Those that are missing keep the values of the published weights."""
    labels = write_labels(tmp_path, "ant\nbee\nwasp")
    text = '{"crop": 192, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1], "interpolation": "bicubic"}'
    (tmp_path / "preprocessing.json").write_text(text)
    value = str(tmp_path / "preprocessing.json") if is_file else text
    model = load_model(ModelSource(CLASSIFIER, weights, labels, value))
    assert model.preprocessing == Preprocessing(256, 192, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "bicubic")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"crop": 299}', "need 0 < crop <= resize <= 4096, got 299 and 256"),
        ('{"size": 224}', "unknown field 'size'; did you mean 'resize'?"),
        ('{"mean": [0.5]}', "mean"),
        ('{"mean": 0.5}', "mean"),
        ('{"std": [0, 1, 1]}', "std above zero"),
        ('{"crop": "224"}', "crop"),
        ('{"interpolation": "nearest"}', "interpolation"),
        ('{"crop": 224', "not valid JSON"),
        ("missing.json", "missing.json cannot be read: No such file"),
    ],
)
def test_invalid_preprocessing_is_reported(tmp_path: Path, weights: str, text: str, reason: str) -> None:
    labels = write_labels(tmp_path, "ant\nbee\nwasp")
    assert reason in load_error(ModelSource(CLASSIFIER, weights, labels, text))


def test_preprocessing_file_must_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[224]")
    source = ModelSource(CLASSIFIER, preprocessing=str(tmp_path / "list.json"))
    assert "not a JSON object with fields such as resize" in load_error(source)


def test_number_of_classes_is_found_for_each_family_of_networks() -> None:
    """One of each family, without values, except for RegNets, which compute with values while built."""
    modules = {models.get_model_builder(name).__module__: name for name in models.list_models(module=models)}
    names = [name for name in modules.values() if not name.startswith("regnet")]
    assert len(names) > 15
    with torch.device("meta"):
        names.append(catalog.EFFICIENTNET_LITE0)
        states = {name: catalog.get_spec(name).build(7).state_dict() for name in names}
    states["regnet_y_400mf"] = catalog.get_spec("regnet_y_400mf").build(7).state_dict()
    counts = {name: catalog.get_spec(name).count_classes(state) for name, state in states.items()}
    assert counts == dict.fromkeys(states, 7)


def test_file_without_a_last_layer_is_not_counted() -> None:
    spec = catalog.get_spec("resnet18")
    assert spec.count_classes({"features.0.weight": torch.zeros(2, 2)}) is None
    assert spec.count_classes({"fc.weight": torch.zeros(2)}) is None
