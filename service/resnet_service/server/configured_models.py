"""The models that the settings name: which are loaded at the start, and which may be loaded later."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from resnet_service.errors import ModelLoadError, ModelNotFound
from resnet_service.models import AUTO, ModelSource, ModelVersion, choose_model
from resnet_service.models.model import FIRST_VERSION
from resnet_service.models.registry import model_name
from resnet_service.models.repository import (
    ModelConfig,
    ModelOptions,
    ModelRepository,
    TrafficSplit,
    VersionConfig,
)
from resnet_service.settings import Settings

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class ModelReader(Protocol):
    """Where models are configured: a `ModelRepository`, or `NamedModels`."""

    def names(self) -> list[str]:
        """Return the names of all models. Raises ModelLoadError."""
        ...

    def read(self, name: str) -> ModelConfig:
        """Return a model. Raises ModelNotFound and ModelLoadError."""
        ...


class NamedModels:
    """The models that are named one by one; each has one version."""

    def __init__(self, sources: Sequence[ModelSource]) -> None:
        """Check the names. Raises ModelLoadError if two models have the same."""
        self._configs: dict[str, ModelConfig] = {}
        for source in sources:
            name = model_name(source)
            if name in self._configs:
                raise ModelLoadError(f"two models have the name {name!r}")
            version = VersionConfig(ModelVersion(name, FIRST_VERSION), source, ModelOptions())
            self._configs[name] = ModelConfig(name, (version,), TrafficSplit())

    def names(self) -> list[str]:
        """See `ModelReader`."""
        return list(self._configs)

    def read(self, name: str) -> ModelConfig:
        """See `ModelReader`."""
        if name not in self._configs:
            names = ", ".join(map(repr, self._configs))
            raise ModelNotFound(f"unknown model {name[:50]!r}; the settings have {names}")
        return self._configs[name]


class ConfiguredModels:
    """The models of a reader, and which of them are wanted: all, or some of them in an order.

    configured = ConfiguredModels(ModelRepository(folder))
    configs = [configured.read(name) for name in configured.names()]
    """

    def __init__(self, reader: ModelReader, first: Sequence[str] = ()) -> None:
        """Load the models `first` at the start, or all without any."""
        self._reader = reader
        self._first = list(first)
        self._removed: set[str] = set()

    def names(self) -> list[str]:
        """Return the models to load at the start. Raises ModelLoadError if there are none."""
        names = self._first or self._reader.names()
        if not names:
            raise ModelLoadError("the model repository has no models")
        return names

    def all_names(self) -> list[str]:
        """Return all models that can be loaded. Raises ModelLoadError."""
        return self._reader.names()

    def loaded_names(self, loaded: Iterable[str]) -> list[str]:
        """Return the models to load in a reload: those that are loaded and still exist, and new ones.

        Raises ModelLoadError, also if none is left.
        """
        existing = set(self._reader.names())
        names = [name for name in dict.fromkeys([*loaded, *self.names()]) if name in existing - self._removed]
        if not names:
            raise ModelLoadError("the model repository has none of the models that are loaded")
        return names

    def read(self, name: str) -> ModelConfig:
        """Return a model. Raises ModelNotFound and ModelLoadError."""
        return self._reader.read(name)

    def add(self, name: str) -> None:
        """Load a model in further reloads."""
        self._removed.discard(name)

    def remove(self, name: str) -> None:
        """Leave out a model in further reloads."""
        self._removed.add(name)


def configured_models(settings: Settings) -> ConfiguredModels:
    """Return the models of the settings. Raises ModelLoadError.

    `auto` is replaced by its choice: a reload must load the same model again.
    """
    names = [name.strip() for name in settings.model.split(",")]
    weights = ModelSource(
        AUTO, settings.weights, settings.labels, settings.preprocessing, settings.weights_sha256
    )
    is_one_model = len(names) == 1 and settings.model_repository is None
    if weights != ModelSource(AUTO) and not is_one_model:
        raise ModelLoadError(
            "weights, labels, preprocessing and weights_sha256 are for one model: describe several in a "
            "model repository"
        )
    if settings.model_repository is not None:
        return ConfiguredModels(
            ModelRepository(settings.model_repository), [] if settings.model == AUTO else names
        )
    choices = [choose_model(replace(weights, name=name)) for name in names]
    for choice in choices:
        if choice.reason is not None:
            _log.info("model_chosen", model=choice.name, reason=choice.reason)
    return ConfiguredModels(NamedModels([choice.source for choice in choices]))
