"""What a user names to load a model: the network, its weights, labels and preprocessing."""

from dataclasses import dataclass, replace
from pathlib import Path

from resnet_service.errors import ModelLoadError
from resnet_service.images import Preprocessing
from resnet_service.models import catalog
from resnet_service.models.own_classes import read_labels, read_preprocessing
from resnet_service.models.timm_models import TimmSpec


@dataclass(frozen=True)
class ModelSource:
    """The settings and options that say which model to load; the files are read when the model is.

    Attributes:
        name: a classifier of the catalog, a model of timm, "cifar10", or the path of a file.
        weights: for a classifier of the catalog: a path, an http(s) URL or the name of another published set
            (IMAGENET1K_V1); by default its best published weights.
        labels: a file with the labels, in a format of `read_labels`; by default those of the weights.
        preprocessing: a JSON file or JSON text, as for `read_preprocessing`; fields that it does not have,
            or all of them, are those of the published weights or of the checkpoint.
        weights_sha256: digits that the SHA-256 of the file with the weights must start with.

    """

    name: str
    weights: str | None = None
    labels: Path | None = None
    preprocessing: str | None = None
    weights_sha256: str | None = None

    @property
    def is_published(self) -> bool:
        """Whether the weights are published ones of a classifier of the catalog."""
        return catalog.is_classifier(self.name) and (
            self.weights is None or self.weights in catalog.published_weights(self.name)
        )

    def published_spec(self) -> catalog.ModelSpec | TimmSpec:
        """Return the classifier of the catalog, with the published weights if `is_published`.

        Its preprocessing, and with published weights its labels, are those of the user if there are any.
        Raises ModelLoadError if one of the files cannot be read.
        """
        spec = catalog.get_spec(self.name, self.weights if self.is_published else None)
        if self.is_published:
            spec = replace(spec, labels=self.choose_labels(spec.labels, len(spec.labels)))
        return replace(spec, preprocessing=self.choose_preprocessing(spec.preprocessing))

    def choose_labels(self, default: tuple[str, ...], classes: int) -> tuple[str, ...]:
        """Return the labels of the user, or else `default`, for weights with this number of `classes`.

        Raises ModelLoadError if there are more or fewer.
        """
        labels = default if self.labels is None else read_labels(self.labels)
        if len(labels) == classes:
            return labels
        if self.labels is None:
            raise ModelLoadError(
                f"the weights are for {classes:,} classes, and the published labels of {self.name} are for "
                f"{len(labels):,}: name the classes with --labels FILE, one label a line"
            )
        raise ModelLoadError(
            f"the weights are for {classes:,} classes, and {self.labels} has {len(labels):,} labels"
        )

    def choose_preprocessing(self, default: Preprocessing) -> Preprocessing:
        """Return `default` with the fields that the user has set. Raises ModelLoadError."""
        return default if self.preprocessing is None else read_preprocessing(self.preprocessing, default)
