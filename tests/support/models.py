"""Models for tests: checkpoints, small networks with random weights, and errors of loading."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn
from torchvision.models import squeezenet1_1

from resnet_service.errors import ModelLoadError
from resnet_service.models import CIFAR10, ModelSource, catalog, checkpoint, load_model, weights_path
from resnet_service.models.catalog import ModelSpec
from resnet_service.models.timm_models import TimmSpec

CLASSIFIER = "squeezenet1_1"
"""A torchvision classifier with small weights (5 MB)."""


def write_checkpoint(path: Path, label_prefix: str = "", scale: float = 1.0) -> None:
    """Write the model cifar10 with a prefix before its labels and its weights multiplied by `scale`."""
    model = checkpoint.load_checkpoint(weights_path(CIFAR10))
    labels = tuple(f"{label_prefix}{label}" for label in model.labels)
    state = {
        name: tensor * torch.tensor(scale, dtype=tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.state.items()
    }
    checkpoint.save_checkpoint(replace(model, labels=labels, state=state), path)


@cache
def random_classifier(classes: int = 1000) -> nn.Module:
    """Return `CLASSIFIER` with random weights, the same in each call; do not modify it."""
    torch.manual_seed(0)
    return cast(nn.Module, squeezenet1_1(num_classes=classes))


def same_weights(network: nn.Module, other: nn.Module) -> bool:
    """Return whether the state dicts of two networks are equal."""
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


PublishFn = Callable[[str, str], None]
"""Replaces the URL of a classifier's published weights: takes its name and the URL."""


def replace_source(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    """Replace the URL of the published weights of the classifier `name`."""
    original, files = catalog.get_spec, catalog.published_files() | {url.rpartition("/")[2]}

    def get_spec(requested: str, weights: str | None = None) -> ModelSpec | TimmSpec:
        spec = original(requested, weights)
        return replace(spec, source=url) if requested == name else spec

    monkeypatch.setattr(catalog, "get_spec", get_spec)
    monkeypatch.setattr(catalog, "published_files", lambda: files)


def load_error(source: ModelSource | str, weights: str | None = None) -> str:
    """Load a model, which must fail, and return the message, which must list alternatives."""
    source = ModelSource(source, weights) if isinstance(source, str) else source
    with pytest.raises(ModelLoadError) as caught:
        load_model(source)
    message = str(caught.value)
    assert "Alternatives:" in message
    return message
