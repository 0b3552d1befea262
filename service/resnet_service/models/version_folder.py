"""Read the folder of one version of a model: what to load, and the options that it runs with.

The folder has a checkpoint, an ONNX file, or model.yaml, which names a source and options. This module does
not know where the folder is, and does not load the model.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from resnet_service import option_types
from resnet_service.errors import ModelLoadError
from resnet_service.files import check_regular_file, describe_os_error
from resnet_service.hints import StrictModel, input_error, most_similar, summarize_errors
from resnet_service.images import Preprocessing
from resnet_service.images.preprocess import MAX_SIDE
from resnet_service.models import catalog
from resnet_service.models.default import AUTO
from resnet_service.models.download import is_url
from resnet_service.models.onnx import SUFFIX as ONNX_SUFFIX
from resnet_service.models.own_classes import read_preprocessing
from resnet_service.models.registry import CIFAR10
from resnet_service.models.source import ModelSource
from resnet_service.models.yaml_reader import read_yaml

_VERSION_FILE: Final = "model.yaml"
_YAML_SUFFIXES: Final = (".yaml", ".yml")
_STATE_DICT_SUFFIXES: Final = (".pth", ".pt")
_MODEL_SUFFIXES: Final = (".safetensors", ONNX_SUFFIX, *_STATE_DICT_SUFFIXES)
_LOST_AND_FOUND: Final = "lost+found"
"""In the root of volumes with ext4."""
_ANY_PREPROCESSING: Final = Preprocessing(resize=MAX_SIDE, crop=1, mean=(0, 0, 0), std=(1, 1, 1))
"""With the fields of a user, it is invalid only if they are invalid for every network."""


class ModelOptions(StrictModel):
    """How a version runs; None is the setting of the service, which has the same name.

    options = ModelOptions(precision="bf16", max_batch=16)
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)
    kind = "field"

    device: option_types.DeviceName | None = None
    runtime: option_types.RuntimeName | None = None
    precision: option_types.PrecisionName | None = None
    streams_per_device: option_types.StreamsPerDevice = None
    max_batch: option_types.MaxBatch = None
    max_wait_ms: option_types.MaxWaitMs | None = None
    max_concurrency: option_types.MaxConcurrency = None
    max_queue: option_types.MaxQueue = None
    max_queue_wait_s: option_types.MaxQueueWaitS | None = None
    model_threads: option_types.ModelThreads = None


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise input_error("the text has characters that cannot be printed")
    return text


_Text = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_check_printable)]


def _as_json(value: Any) -> Any:
    if not isinstance(value, dict | str | None):
        raise input_error("the value is neither a mapping nor the name of a file")
    return json.dumps(value) if isinstance(value, dict) else value


class _VersionFile(ModelOptions):
    """The content of model.yaml. `preprocessing` is JSON or the name of a file."""

    model: _Text
    weights: _Text | None = None
    labels: _Text | None = None
    preprocessing: Annotated[_Text | None, BeforeValidator(_as_json)] = None
    weights_sha256: option_types.SHA256Digits = None


def read_version(folder: Path) -> tuple[ModelSource, ModelOptions]:
    """Return what to load for the version in `folder`, an absolute path, and how it runs.

    Files that model.yaml names are relative to the folder; in the source they are absolute. Raises
    ModelLoadError, with the path and the reason, if the folder or a file cannot be read, or what to load is
    ambiguous or invalid.
    """
    files = list_folder(folder)
    reject_other_yaml(folder, files, _VERSION_FILE)
    if _VERSION_FILE in files:
        path = folder / _VERSION_FILE
        content = parse_yaml(_VersionFile, path)
        try:
            source = _create_source(content, folder)
        except ModelLoadError as error:
            raise ModelLoadError(f"{path}: {error}") from error
        return source, ModelOptions(**content.model_dump(include=set(ModelOptions.model_fields)))
    models = [file for file in files if Path(file).suffix.lower() in _MODEL_SUFFIXES]
    if not models:
        raise ModelLoadError(
            f"{folder} has neither {_VERSION_FILE} nor a file that ends in {' or '.join(_MODEL_SUFFIXES[:2])}"
        )
    if len(models) > 1:
        raise ModelLoadError(
            f"{folder} has {len(models)} models, such as {models[0]!r} and {models[1]!r}: leave one, or name "
            f"one in {_VERSION_FILE}"
        )
    return ModelSource(_check_model_file(folder / models[0])), ModelOptions()


def list_folder(folder: Path) -> list[str]:
    """Return the names in a folder, sorted, without hidden ones. Raises ModelLoadError."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder} cannot be read: {describe_os_error(error)}") from error
    return [name for name in names if not name.startswith(".") and name != _LOST_AND_FOUND]


def reject_other_yaml(folder: Path, files: list[str], expected: str) -> None:
    """Raise ModelLoadError for a YAML file with another name than `expected`: it would have no effect."""
    for file in files:
        if file.lower().endswith(_YAML_SUFFIXES) and file != expected:
            raise ModelLoadError(f"{folder} has {file!r}, and the only YAML file here is {expected!r}")


_Content = TypeVar("_Content", bound=StrictModel)


def parse_yaml(model: type[_Content], path: Path) -> _Content:
    """Return the content of a YAML file as a `model`. Raises ModelLoadError."""
    try:
        return model.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ModelLoadError(f"{path}: {summarize_errors(error.errors())}") from error


def _create_source(content: _VersionFile, folder: Path) -> ModelSource:
    """Return the source with absolute paths. Raises ModelLoadError without the path of model.yaml."""
    weights, labels, preprocessing = content.weights, content.labels, content.preprocessing
    if preprocessing is not None and preprocessing.startswith("{"):
        read_preprocessing(preprocessing, _ANY_PREPROCESSING)
    elif preprocessing is not None:
        preprocessing = str(_check_file(folder / preprocessing))
    return ModelSource(
        name=_model_name(content.model, folder),
        weights=None if weights is None else _weights(weights, content.model, folder),
        labels=None if labels is None else _check_file(folder / labels),
        preprocessing=preprocessing,
        weights_sha256=content.weights_sha256,
    )


def _model_name(name: str, folder: Path) -> str:
    if name == AUTO:
        raise ModelLoadError(f"the model {AUTO} depends on the machine; name the one that it stands for")
    if name == CIFAR10 or catalog.is_classifier(name):
        return name
    path = folder / name
    if not os.path.lexists(path):
        similar = most_similar(name, [CIFAR10, *catalog.model_names()])
        hint = f"; did you mean {similar!r}?" if similar else ""
        raise ModelLoadError(f"the model {name!r} is neither a classifier nor a file in {folder}{hint}")
    return _check_model_file(path)


def _weights(weights: str, model: str, folder: Path) -> str:
    published = catalog.published_weights(model) if catalog.is_classifier(model) else ()
    if is_url(weights) or weights in published:
        return weights
    path = folder / weights
    if published and not os.path.lexists(path):
        raise ModelLoadError(
            f"the weights {weights!r} are neither a file in {folder} nor published ones of {model} "
            f"({', '.join(published)})"
        )
    return str(_check_file(path))


def _check_model_file(path: Path) -> str:
    """Return the path of a model, whose format `load_model` checks. Raises ModelLoadError."""
    if not path.name.isprintable():
        raise ModelLoadError(
            f"{path.parent} has {path.name!r}, whose name has characters that cannot be printed"
        )
    _check_file(path)
    suffix = path.suffix.lower()
    if suffix in _STATE_DICT_SUFFIXES:
        raise ModelLoadError(
            f"{path} has weights without their network: name both in {_VERSION_FILE}, for example with the "
            f"lines model: resnet50 and weights: {path.name}"
        )
    beside = path.with_suffix(".json")
    if suffix == ONNX_SUFFIX and os.path.lexists(beside):
        _check_file(beside)
    return str(path)


def _check_file(path: Path) -> Path:
    try:
        check_regular_file(path)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {describe_os_error(error)}") from error
    return path
