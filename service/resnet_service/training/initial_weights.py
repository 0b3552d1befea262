"""The weights that a run starts from, and the network that they belong to."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from resnet_service.errors import ModelLoadError, TrainingError
from resnet_service.images import Preprocessing
from resnet_service.models import CIFAR10, OpenVINOModel, catalog, checkpoint, weights_path
from resnet_service.models.download import is_url


@dataclass(frozen=True)
class InitialWeights:
    """Weights for a network.

    Attributes:
        network: a key of NETWORKS or a classifier of the catalog.
        name: what the log calls them: a model, a file or a URL.
        source: the path or the URL of their file.
        preprocessing: of the images that they were trained on, None if it is unknown.

    """

    network: str
    name: str
    source: str
    preprocessing: Preprocessing | None


def find_weights(source: str, network: str | None = None) -> InitialWeights:
    """Return the weights that `source` names: a model, the path of a checkpoint or a state dict, or a URL.

    A model (cifar10 or a classifier of the catalog) and a checkpoint name their network; with `network`,
    `source` may also be a state dict, or the name of one of its published sets (IMAGENET1K_V1). Nothing is
    downloaded yet. Raises TrainingError for weights that are unknown, quantized, or need `network`.
    """
    if source == CIFAR10:
        path = weights_path(CIFAR10)
        return _from_checkpoint(checkpoint.load_checkpoint(path), CIFAR10, path)
    if source in catalog.model_names():
        return _published(source)
    if network in catalog.model_names() and source in catalog.published_weights(network):
        return _published(network, source)
    if not (is_url(source) or Path(source).is_file()):
        raise TrainingError(_describe_unknown(source, network))
    reason = "only a checkpoint does"
    if not is_url(source):
        try:
            return _from_checkpoint(checkpoint.load_checkpoint(Path(source)), source, Path(source))
        except ModelLoadError as error:
            reason = str(error)
    if network is None:
        raise TrainingError(f"{source} does not name its network; set --network ({reason})")
    preprocessing = catalog.get_spec(network).preprocessing if network in catalog.model_names() else None
    return InitialWeights(network, source, source, preprocessing)


def _from_checkpoint(content: checkpoint.Checkpoint, name: str, path: Path) -> InitialWeights:
    if OpenVINOModel.from_state_dict(content.state):
        raise TrainingError(f"{name} is quantized and cannot be trained; use the model it was quantized from")
    return InitialWeights(content.network, name, str(path), content.preprocessing)


def _published(network: str, name: str | None = None) -> InitialWeights:
    spec = catalog.get_spec(network, name)
    return InitialWeights(network, spec.source_name, spec.source, spec.preprocessing)


def _describe_unknown(source: str, network: str | None) -> str:
    """Return the message for weights that are neither a model nor a published set, a file or a URL."""
    message = f"--weights {source} is neither a file nor a model"
    published: tuple[str, ...] = ()
    if network in catalog.model_names():
        published = catalog.published_weights(network)
        message += f" nor one of the published sets of {network}, {', '.join(published)}"
    elif network is not None:
        message += f", and there are no published weights for {network}"
    similar = get_close_matches(source, [CIFAR10, *catalog.model_names(), *published], n=3)
    return f"{message}; did you mean {' or '.join(similar)}?" if similar else message
