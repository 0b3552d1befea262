"""The versions of the models that serve, and which of them answers a request."""

import random
from collections.abc import Collection, Iterable, Mapping
from typing import Final, TypeVar

from resnet_service.errors import ModelNotFound
from resnet_service.inference.served_model import ServedModel
from resnet_service.models import ModelVersion
from resnet_service.models.repository import TrafficSplit

Served = TypeVar("Served")

_MAX_SHOWN: Final = 10


class ModelTable:
    """All versions that serve; immutable and replaced as a whole, so that a request sees one state.

    models = ModelTable({ModelVersion("resnet50", "1"): served}, {})
    served = models.choose("resnet50", None)

    names: the names of the models; the first one is the default.
    traffic: the traffic splits, by name.
    """

    def __init__(
        self, served: Mapping[ModelVersion, ServedModel], traffic: Mapping[str, TrafficSplit]
    ) -> None:
        """Create the table of `served`, in the order of the names, with the versions of each ascending."""
        self.names = tuple(dict.fromkeys(key.name for key in served))
        self.traffic = {name: traffic.get(name, TrafficSplit()) for name in self.names}
        self._served = dict(served)
        self._default = {
            name: self._served[ModelVersion(name, split.version or self.versions(name)[-1])]
            for name, split in self.traffic.items()
        }

    @property
    def only(self) -> ServedModel | None:
        """The only version of the only model; None if there are several."""
        return next(iter(self._served.values())) if len(self._served) == 1 else None

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model, ascending."""
        return [key.version for key in self._served if key.name == name]

    def find(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """Return a version: by default that which answers most requests, of the first model.

        Raises ModelNotFound.
        """
        name = self.names[0] if name is None else name
        if name not in self._default:
            names = _list(map(repr, self.names))
            raise ModelNotFound(f"unknown model {name[:50]!r}; the server has {names}")
        if version is None:
            return self._default[name]
        served = self._served.get(ModelVersion(name, version))
        if served is None:
            versions = self.versions(name)
            have = f"version {versions[0]!r}" if len(versions) == 1 else f"versions {_list(versions)}"
            raise ModelNotFound(f"unknown version {version[:50]!r}; the model has {have}")
        return served

    def choose(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """Return the version that answers a request, as `find` does, or for its share the canary.

        Raises ModelNotFound.
        """
        served = self.find(name, version)
        split = self.traffic[served.model.name]
        if version is None and split.canary is not None and random.random() * 100 < split.canary_percent:  # noqa: S311
            return self._served[ModelVersion(served.model.name, split.canary)]
        return served


def replace_versions(
    current: Mapping[ModelVersion, Served],
    removed: Collection[ModelVersion],
    added: Mapping[ModelVersion, Served],
) -> dict[ModelVersion, Served]:
    """Return `current` without `removed` and with `added`; models that stay keep their order."""
    versions = {key: served for key, served in current.items() if key not in removed} | dict(added)
    names = dict.fromkeys([*(key.name for key in current), *(key.name for key in added)])
    return {key: versions[key] for name in names for key in versions if key.name == name}


def _list(names: Iterable[str]) -> str:
    """Return the first names: messages of gRPC have a limit of 8 KiB."""
    names = list(names)
    return ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")
