"""The default model `auto`: ResNet-50 if its published weights can be had, otherwise efficientnet_lite0."""

from dataclasses import dataclass, replace
from typing import Final

from resnet_service.errors import ModelLoadError
from resnet_service.models import catalog, weights
from resnet_service.models.source import ModelSource

AUTO: Final = "auto"

_PREFERRED: Final = "resnet50"


@dataclass(frozen=True)
class ModelChoice:
    """What to pass to `load_model`, and why it was chosen; None if the user named the model."""

    source: ModelSource
    reason: str | None = None

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.source.name


def choose_model(source: ModelSource | str) -> ModelChoice:
    """Choose what `auto` stands for on this machine now; another name stands for itself.

    With weights of the user, `auto` is ResNet-50 with these weights. Otherwise it is ResNet-50 if its
    published weights are in the cache or can be downloaded, which this function then does, with a progress
    bar. It is efficientnet_lite0, whose weights are installed with the package, if their server does not
    respond within 5 s or the download fails.

    The choice depends on the network and the cache: a process chooses once, and replicas name their model.

        model = load_model(choose_model("auto").source)
    """
    source = ModelSource(source) if isinstance(source, str) else source
    if source.name != AUTO:
        return ModelChoice(source)
    name, reason = _choose_by_download() if source.weights is None else (_PREFERRED, "weights are set")
    return ModelChoice(replace(source, name=name), reason)


def _choose_by_download() -> tuple[str, str]:
    spec = catalog.get_spec(_PREFERRED)
    try:
        is_new = weights.fetch_published(spec)
    except (ModelLoadError, OSError) as error:  # OSError: the cache cannot be read
        reason = f"the weights of {_PREFERRED} cannot be downloaded: {error}"
        return catalog.EFFICIENTNET_LITE0, reason
    where = "were downloaded" if is_new else f"are in {weights.cache_path(spec.source).parent}"
    return _PREFERRED, f"its published weights {where}"
