"""The project's checkpoints: contents, and files that are missing, damaged or contradictory."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from resnet_service.images import Preprocessing
from resnet_service.models import load_model
from resnet_service.models.checkpoint import FORMAT, Checkpoint, save_checkpoint
from resnet_service.models.networks import NETWORKS
from tests.support.models import CLASSIFIER, load_error, random_classifier, same_weights

PREPROCESSING = Preprocessing(32, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LABELS = ("a", "b", "c")


def test_checkpoint_contains_everything_for_serving(tmp_path: Path) -> None:
    """A checkpoint restores network, labels and preprocessing; saving it leaves no other file."""
    preprocessing = Preprocessing(40, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    network = NETWORKS["lenet"](3)
    path = tmp_path / "trained.safetensors"
    save_checkpoint(Checkpoint("lenet", LABELS, preprocessing, network.state_dict(), {"seed": 1}), path)
    model = load_model(str(path))
    assert (model.name, model.labels, model.preprocessing) == ("trained", LABELS, preprocessing)
    assert same_weights(model.network, network)
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoint_of_a_torchvision_network_is_loaded(tmp_path: Path) -> None:
    """A fine-tuned torchvision classifier is loaded like any checkpoint."""
    network = random_classifier(classes=2)
    path = tmp_path / "tuned.safetensors"
    preprocessing = Preprocessing(64, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    save_checkpoint(Checkpoint(CLASSIFIER, ("yes", "no"), preprocessing, network.state_dict()), path)
    assert same_weights(load_model(str(path)).network, network)


@pytest.mark.parametrize("name", ["missing.safetensors", "folder/missing"])
def test_missing_checkpoint_is_reported(name: str) -> None:
    """A missing file is reported as such."""
    assert "file not found" in load_error(name)


def test_safetensors_without_metadata_is_not_a_checkpoint(tmp_path: Path) -> None:
    """A safetensors file without the project's metadata cannot be loaded by its path alone."""
    save_file(NETWORKS["lenet"](3).state_dict(), tmp_path / "bare.safetensors")
    assert "is not a checkpoint" in load_error(str(tmp_path / "bare.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "unknown"},
        {"labels": ("only", "two")},
        {"preprocessing": Preprocessing(1, 1, (0, 0, 0), (1, 1, 1)), "network": "vit_b_16"},
    ],
    ids=["network", "labels", "preprocessing"],
)
def test_contradictory_checkpoint_is_rejected(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A checkpoint whose metadata does not fit its weights is rejected."""
    content = {
        "network": "lenet",
        "labels": LABELS,
        "preprocessing": PREPROCESSING,
        "state": NETWORKS["lenet"](3).state_dict(),
    }
    save_checkpoint(Checkpoint(**{**content, **changes}), tmp_path / "odd.safetensors")
    load_error(str(tmp_path / "odd.safetensors"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", "[1, 2, 3]"),
        ("labels", '"abc"'),
        ("labels", "[]"),
        pytest.param("labels", "[" * 100_000, id="labels-nested"),
        ("preprocessing", "{}"),
        ("preprocessing", "[]"),
        ("preprocessing", '{"resize": 32, "crop": 31.5, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        ("preprocessing", '{"resize": 1e999, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        ("preprocessing", '{"resize": 99999, "crop": 99999, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        ("preprocessing", '{"resize": 32, "crop": 32, "mean": "abc", "std": [1, 1, 1]}'),
        ("preprocessing", '{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [1, NaN, 1]}'),
        ("preprocessing", '{"resize": 32, "crop": 32, "mean": [0, 0], "std": [1, 1, 1]}'),
        (
            "preprocessing",
            '{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "x"}',
        ),
        ("training", "[]"),
        ("format", "resnet-service/2"),
    ],
)
def test_invalid_metadata_is_rejected(tmp_path: Path, key: str, value: str) -> None:
    """Metadata of the wrong types or with values out of range is rejected when the model is loaded."""
    metadata = {
        "format": FORMAT,
        "network": "lenet",
        "labels": '["a", "b", "c"]',
        "preprocessing": '{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}',
        "training": "{}",
    }
    path = tmp_path / "model.safetensors"
    state = NETWORKS["lenet"](3).state_dict()
    save_file(state, path, metadata)
    assert load_model(str(path)).labels == LABELS
    save_file(state, path, {**metadata, key: value})
    load_error(str(path))


def test_weights_that_produce_nan_are_rejected(tmp_path: Path) -> None:
    """A network whose output is not finite is rejected when the model is loaded."""
    state = NETWORKS["lenet"](3).state_dict()
    state["fc.bias"].fill_(float("nan"))
    path = tmp_path / "nan.safetensors"
    save_checkpoint(Checkpoint("lenet", LABELS, PREPROCESSING, state), path)
    assert "not finite" in load_error(str(path))
