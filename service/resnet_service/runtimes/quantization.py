"""Turn a network into an int8 graph: post-training quantization by NNCF, calibrated on given images."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from resnet_service.errors import MissingDependencyError, TrainingError
from resnet_service.models import Model
from resnet_service.runtimes.selection import create_runtimes
from resnet_service.training import data

_BATCH: Final = 32


@dataclass(frozen=True)
class QuantizedModel:
    """A model with an int8 graph, and how it compares with the one it was made from.

    `agreement` is the share of the calibration images, 0..1, whose best class is the same.
    """

    model: Model
    agreement: float


def quantize(model: Model, images: npt.NDArray[np.uint8]) -> QuantizedModel:
    """Quantize `model`, calibrated on `images`, [N, S, S, 3].

    Weights get a scale for each channel, activations one for each tensor, chosen so that little is clipped on
    those images. Raises MissingDependencyError without NNCF.
    """
    if find_spec("nncf") is None:
        raise MissingDependencyError("quantizing needs NNCF: pip install 'resnet-service[quantize]'")
    from resnet_service.runtimes import openvino  # before NNCF, which would report to its makers as well

    import nncf  # isort: skip

    with redirect_stdout(sys.stderr):  # its progress is no answer
        quantized = nncf.quantize(
            openvino.convert(model.network, model.preprocessing),
            nncf.Dataset([image[None] for image in images]),
            subset_size=len(images),
        )
    result = Model(model.name, openvino.serialize(quantized), model.labels, model.preprocessing, model.source)
    same = _best(result, images) == _best(model, images)
    return QuantizedModel(result, float(same.mean()))


def load_calibration_images(folder: Path, model: Model, samples: int = 300) -> data.Dataset:
    """Read up to `samples` of the images under `folder`, always the same ones, from every folder below.

    Raises TrainingError where none can be read.
    """
    if not folder.is_dir():
        raise TrainingError(f"there is no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise TrainingError(f"{folder} has no images")
    count = min(samples, len(files))
    chosen = [files[index * len(files) // count] for index in range(count)]
    return data.read_images(
        [(path, 0) for path in chosen], (str(folder),), model.preprocessing, "reading images"
    )


def _best(model: Model, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    [runtime] = create_runtimes(model, [torch.device("cpu")], name="openvino", streams_per_device=1)
    parts = np.split(images, range(_BATCH, len(images), _BATCH))
    return np.concatenate([runtime.run(list(part), 1).class_ids[:, 0] for part in parts])
