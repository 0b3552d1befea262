"""What is served: a network with its weights, its labels and its preprocessing.

`load` is the one door: a torchvision name, a checkpoint's path, or `bundled`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from resnet_service.errors import InferenceError, ModelLoadError
from resnet_service.images import Preprocessing
from resnet_service.models import catalog, checkpoint, weights
from resnet_service.models.networks import NETWORKS
from resnet_service.models.openvino_ir import OpenVINOModel, openvino_model_from_state

BUNDLED: Final = "bundled"
_BUNDLED_FILE: Final = "cifar10.safetensors"


@dataclass(frozen=True)
class Prediction:
    """One class of an answer: its index, its label and its probability (0..1)."""

    class_id: int
    label: str
    probability: float


@dataclass(frozen=True)
class Model:
    """A classifier ready to be put on a device: a network in fp32, on the CPU, in eval mode, or a graph.

    `network` takes [N, 3, S, S] normalized float, S = preprocessing.crop, and gives logits
    [N, len(labels)]. `source` says where the weights come from.
    """

    name: str
    program: nn.Module | OpenVINOModel
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: str

    @property
    def network(self) -> nn.Module:
        """The network; raises ModelLoadError where quantization has left a graph only."""
        if isinstance(self.program, OpenVINOModel):
            raise ModelLoadError(f"{self.name!r} is quantized; this needs the model it was made from")
        return self.program

    @property
    def openvino_model(self) -> OpenVINOModel | None:
        """The graph of a quantized model; None where there is a network."""
        return self.program if isinstance(self.program, OpenVINOModel) else None

    def rank(
        self, class_ids: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]
    ) -> tuple[Prediction, ...]:
        """Put labels to the best classes of an image, [k] and [k], best first.

        The probabilities are numbers: `validate_probabilities` has seen them.
        """
        return tuple(
            Prediction(class_id, self.labels[class_id], probability)
            for class_id, probability in zip(class_ids.tolist(), probabilities.tolist(), strict=True)
        )


def validate_probabilities(probabilities: npt.NDArray[np.float32]) -> None:
    """Raise InferenceError where one of an image's probabilities, [k], is not a number."""
    if not all(map(math.isfinite, probabilities.tolist())):
        raise InferenceError("the network's answer is not a number; try --precision fp32")


def load_model(name: str, weights_source: str | None = None) -> Model:
    """Load the model called `name`: a torchvision classifier, a checkpoint's path, or "bundled".

    `weights_source`, for torchvision names only, replaces the published weights: a path, an http(s)
    URL or the name of another published set (IMAGENET1K_V1). Raises ModelLoadError with a message that
    names the ways out.
    """
    try:
        model = _load(name, weights_source)
        _check_output(model)
    except (ModelLoadError, OSError) as error:  # OSError: a path that cannot even be asked for
        raise ModelLoadError(f"cannot load the model {name!r}: {error}\n{_hints(name)}") from error
    return model


def weights_path(name: str, weights_source: str | None = None) -> Path:
    """Return the file that `load` reads weights from, or would keep them in once they are downloaded."""
    if name == BUNDLED:
        return Path(str(resources.files(__name__) / "bundled" / _BUNDLED_FILE))
    if name not in catalog.model_names():
        return Path(name)
    if weights_source is None or weights_source in catalog.published_weights(name):
        weights_source = catalog.get_spec(name, weights_source).url
    return weights.cache_path(weights_source) if weights.is_url(weights_source) else Path(weights_source)


def _load(name: str, weights_source: str | None) -> Model:
    if name in catalog.model_names():
        return _from_torchvision(name, weights_source)
    if weights_source is not None:
        raise ModelLoadError(f"weights can be given for torchvision's networks only, and {name!r} is none")
    if name == BUNDLED:
        with resources.as_file(resources.files(__name__) / "bundled" / _BUNDLED_FILE) as path:
            return _from_checkpoint(name, path)
    path = Path(name)
    if path.suffix or len(path.parts) > 1 or path.exists():
        # A run's folder is called what its model should be; the file in it is always "model".
        return _from_checkpoint(path.absolute().parent.name if path.stem == "model" else path.stem, path)
    close = get_close_matches(name, [BUNDLED, *catalog.model_names()], n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ModelLoadError(f"no torchvision classifier and no file has this name{hint}")


def _from_torchvision(name: str, weights_source: str | None) -> Model:
    if weights_source is None or weights_source in catalog.published_weights(name):
        entry = catalog.get_spec(name, weights_source)
        source = entry.url
    else:
        entry, source = catalog.get_spec(name), weights_source
    network = entry.build()
    load_weights(network, entry.convert_state_dict(weights.load_state_dict(source)), name)
    return Model(name, network.eval(), entry.labels, entry.preprocessing, source)


def _from_checkpoint(name: str, path: Path) -> Model:
    trained = checkpoint.load_checkpoint(path)
    if quantized := openvino_model_from_state(trained.state):
        return Model(name, quantized, trained.labels, trained.preprocessing, path.name)
    if trained.network in NETWORKS:
        network = NETWORKS[trained.network](len(trained.labels))
    elif trained.network in catalog.model_names():
        entry = replace(catalog.get_spec(trained.network), preprocessing=trained.preprocessing)
        network = entry.build(len(trained.labels))
    else:
        raise ModelLoadError(f"{path} holds a network {trained.network!r} that this version does not know")
    load_weights(network, trained.state, trained.network)
    return Model(name, network.eval(), trained.labels, trained.preprocessing, path.name)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load `state` into `network`, which is called `name`; raises ModelLoadError where it does not fit."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        shown = " ".join(" ".join(reasons[:3])[:500].split())
        raise ModelLoadError(f"these weights do not fit {name}: {shown}") from error


@torch.inference_mode()
def _check_output(model: Model) -> None:
    if model.openvino_model is not None:
        return  # its runtime checks it
    size = model.preprocessing.crop
    try:
        output = model.network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ModelLoadError(f"the network cannot run on an image of {size}x{size}: {error}") from error
    if output.shape != (1, len(model.labels)):
        raise ModelLoadError(f"it answers {list(output.shape)} for {len(model.labels)} labels")
    if not output.isfinite().all():
        raise ModelLoadError("its weights give answers that are not numbers")


def _hints(name: str) -> str:
    ways = [
        "--model bundled serves the model that ships with the package and needs no download",
        "--model FILE.safetensors serves a checkpoint of this project's trainer",
    ]
    if name in catalog.model_names():
        file_name = Path(catalog.get_spec(name).url).name
        ways += [
            "--weights FILE or URL takes the weights from there",
            f"or put {file_name} into {weights.torch_cache_dir()}",
            "behind a proxy, set HTTPS_PROXY",
        ]
    return "Ways out:\n" + "\n".join(f"  - {way}" for way in ways)
