"""The default model `auto`: ResNet-50 if its published weights can be had, otherwise efficientnet_lite0."""

from dataclasses import dataclass
from typing import Final

from resnet_service.errors import ModelLoadError
from resnet_service.models import catalog, weights

AUTO: Final = "auto"

_PREFERRED: Final = "resnet50"


@dataclass(frozen=True)
class ModelChoice:
    """The name of a model for `load_model`, and why it was chosen; None if the user named it."""

    name: str
    reason: str | None = None


def choose_model(name: str, weights_source: str | None = None) -> ModelChoice:
    """Choose what `auto` stands for on this machine now; another `name` stands for itself.

    With a `weights_source`, `auto` is ResNet-50 with these weights. Otherwise it is ResNet-50 if its
    published weights are in the cache or can be downloaded, which this function then does, with a progress
    bar. It is efficientnet_lite0, whose weights are installed with the package, if their server does not
    respond within 5 s or the download fails.

    The choice depends on the network and the cache: a process chooses once, and replicas name their model.

        model = load_model(choose_model("auto").name)
    """
    if name != AUTO:
        return ModelChoice(name)
    if weights_source is not None:
        return ModelChoice(_PREFERRED, "weights are set")
    url = catalog.get_spec(_PREFERRED).source
    try:
        is_new = weights.fetch_published(url)
    except (ModelLoadError, OSError) as error:  # OSError: the cache cannot be read
        reason = f"the weights of {_PREFERRED} cannot be downloaded: {error}"
        return ModelChoice(catalog.EFFICIENTNET_LITE0, reason)
    where = "were downloaded" if is_new else f"are in {weights.cache_path(url).parent}"
    return ModelChoice(_PREFERRED, f"its published weights {where}")
