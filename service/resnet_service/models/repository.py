"""A model repository: a folder with models, their versions, and the requests that each version answers.

    NAME/VERSION/      a checkpoint, an ONNX file, or model.yaml
    NAME/traffic.yaml  which version answers requests that name none; optional

VERSION is a positive integer. Hidden entries are ignored and links are followed, so that a folder can be
replaced atomically. The folder is read again in each call, and models are not loaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ConfigDict, Field

from resnet_service.errors import ModelLoadError, ModelNotFound
from resnet_service.hints import StrictModel, input_error
from resnet_service.models.model import ModelVersion
from resnet_service.models.source import ModelSource
from resnet_service.models.version_folder import (
    ModelOptions,
    list_folder,
    parse_yaml,
    read_version,
    reject_other_yaml,
)

__all__ = [
    "ModelConfig",
    "ModelOptions",
    "ModelRepository",
    "ModelVersion",
    "TrafficSplit",
    "VersionConfig",
]

_TRAFFIC_FILE: Final = "traffic.yaml"
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_MAX_SHOWN: Final = 50


@dataclass(frozen=True)
class VersionConfig:
    """A version: its key, what to load, and how it runs. Paths in `source` are absolute."""

    key: ModelVersion
    source: ModelSource
    options: ModelOptions


@dataclass(frozen=True)
class TrafficSplit:
    """Which version answers requests that name none.

    Attributes:
        version: the version that answers; None is the latest. With a canary or a shadow it is not None.
        canary: the version that answers `canary_percent` of these requests instead.
        canary_percent: 0 to 100.
        shadow: the version on which `shadow_percent` of the images of `version` also run, without effect on
            the responses.
        shadow_percent: 0 to 100.

    """

    version: str | None = None
    canary: str | None = None
    canary_percent: float = 0
    shadow: str | None = None
    shadow_percent: float = 0


@dataclass(frozen=True)
class ModelConfig:
    """A model: its versions, at least one, in ascending order, and which of them answers requests."""

    name: str
    versions: tuple[VersionConfig, ...]
    traffic: TrafficSplit


class ModelRepository:
    """Reads the models in a folder; it keeps nothing but the path.

    repository = ModelRepository(Path("models"))
    configs = [repository.read(name) for name in repository.names()]
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()  # a relative path can look like the name of a model: timm/resnet50

    def names(self) -> list[str]:
        """Return the names of the models, sorted: those of all folders, whatever is in them.

        Raises ModelLoadError if the folder cannot be read, or the name of a folder in it is invalid.
        """
        names = self._folders()
        for name in names:
            self._check_name(name)
        return names

    def read(self, name: str) -> ModelConfig:
        """Return the versions of a model, and which of them answers requests.

        Raises ModelNotFound if the repository does not have the model, and ModelLoadError, with the path and
        the reason, if one of its versions or traffic.yaml cannot be used.
        """
        if name not in self._folders():
            raise ModelNotFound(f"unknown model {name[:_MAX_SHOWN]!r}")
        self._check_name(name)
        folder = self._folder / name
        files = list_folder(folder)
        reject_other_yaml(folder, files, _TRAFFIC_FILE)
        versions = sorted((file for file in files if _is_version(folder / file)), key=int)
        if not versions:
            raise ModelLoadError(f"{folder} has no version, which would be a folder such as {folder / '1'}")
        configs = tuple(
            VersionConfig(ModelVersion(name, version), *read_version(folder / version))
            for version in versions
        )
        has_split = _TRAFFIC_FILE in files
        traffic = _read_traffic(folder / _TRAFFIC_FILE, versions) if has_split else TrafficSplit()
        return ModelConfig(name, configs, traffic)

    def _folders(self) -> list[str]:
        return [name for name in list_folder(self._folder) if _is_folder(self._folder / name)]

    def _check_name(self, name: str) -> None:
        if _NAME.fullmatch(name) is None:
            raise ModelLoadError(
                f"{self._folder} has the folder {name!r}, and the name of a model has at most 100 letters, "
                "digits, dots, underscores and hyphens"
            )


def _is_folder(path: Path) -> bool:
    """Return whether an entry is a folder or a broken link, which is reported when it is read."""
    try:
        return path.is_dir() or not path.exists()
    except OSError:  # the target of a link may not be examined
        return True


def _is_version(path: Path) -> bool:
    """Return whether an entry beside traffic.yaml is a version. Raises ModelLoadError for other folders."""
    if _VERSION.fullmatch(path.name) is not None:
        return True
    if path.name != _TRAFFIC_FILE and _is_folder(path):
        raise ModelLoadError(
            f"{path.parent} has the folder {path.name!r}, and a version is a positive integer of at most 18 "
            "digits without leading zeros"
        )
    return False


def _version_text(value: Any) -> Any:
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise input_error("the value is not the number of a version")
    return value


_Version = Annotated[str, BeforeValidator(_version_text)]


def _check_mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        raise input_error("the value is not a mapping such as {version: 2, percent: 10}")
    return value


class _TrafficContent(StrictModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)
    kind = "field"


class _Share(_TrafficContent):
    """A version, and its share of the requests."""

    version: _Version
    percent: Annotated[float, Field(gt=0, le=100)]


_OptionalShare = Annotated[_Share, BeforeValidator(_check_mapping)] | None


class _TrafficFile(_TrafficContent):
    """The content of traffic.yaml."""

    version: _Version | None = None
    canary: _OptionalShare = None
    shadow: _OptionalShare = None


def _read_traffic(path: Path, versions: list[str]) -> TrafficSplit:
    """Read traffic.yaml for a model with these `versions`, in ascending order. Raises ModelLoadError."""
    content = parse_yaml(_TrafficFile, path)
    canary, shadow = content.canary, content.shadow
    others = {share.version for share in (canary, shadow) if share is not None}
    for version in (content.version, *sorted(others)):
        if version is not None and version not in versions:
            raise ModelLoadError(
                f"{path}: the version {version[:_MAX_SHOWN]!r} does not exist; the versions are "
                f"{', '.join(versions)}"
            )
    main = content.version
    if main is None and others:
        remaining = [version for version in versions if version not in others]
        if not remaining:
            raise ModelLoadError(f"{path}: all versions are canary or shadow, and none is left to answer")
        main = remaining[-1]
    if main in others:
        raise ModelLoadError(
            f"{path}: the version {main!r} answers requests, and canary and shadow must be others"
        )
    return TrafficSplit(
        version=main,
        canary=canary.version if canary else None,
        canary_percent=canary.percent if canary else 0,
        shadow=shadow.version if shadow else None,
        shadow_percent=shadow.percent if shadow else 0,
    )
