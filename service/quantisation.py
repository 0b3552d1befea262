"""Turn a network into an int8 graph: post-training quantisation by NNCF, calibrated on given pictures."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from service.errors import ExtraMissing, TrainingImpossible
from service.models import Model
from service.runtimes.selection import open_runtimes
from service.training import data

_BATCH: Final = 32


@dataclass(frozen=True)
class Quantised:
    """A model with an int8 graph, and how it compares with the one it was made from.

    `agreement` is the share of the calibration pictures, 0..1, whose best class is the same.
    """

    model: Model
    agreement: float


def quantise(model: Model, pictures: npt.NDArray[np.uint8]) -> Quantised:
    """Quantise `model`, calibrated on `pictures`, [N, S, S, 3].

    Weights get a scale for each channel, activations one for each tensor, chosen so that little is clipped on
    those pictures. Raises ExtraMissing without NNCF.
    """
    if find_spec("nncf") is None:
        raise ExtraMissing("quantising needs NNCF: pip install 'resnet-service[quantize]'")
    from service.runtimes import openvino  # before NNCF, which would report to its makers as well

    import nncf  # isort: skip

    with redirect_stdout(sys.stderr):  # its progress is no answer
        quantised = nncf.quantize(
            openvino.convert(model.network, model.preprocessing),
            nncf.Dataset([picture[None] for picture in pictures]),
            subset_size=len(pictures),
        )
    result = Model(model.name, openvino.serialise(quantised), model.labels, model.preprocessing, model.source)
    same = _best(result, pictures) == _best(model, pictures)
    return Quantised(result, float(same.mean()))


def calibration(folder: Path, model: Model, samples: int = 300) -> data.Dataset:
    """Read up to `samples` of the pictures under `folder`, always the same ones, from every folder below.

    Raises TrainingImpossible where none can be read.
    """
    if not folder.is_dir():
        raise TrainingImpossible(f"there is no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise TrainingImpossible(f"{folder} has no pictures")
    count = min(samples, len(files))
    chosen = [files[index * len(files) // count] for index in range(count)]
    return data.read([(path, 0) for path in chosen], (str(folder),), model.preprocessing, "reading pictures")


def _best(model: Model, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    [runtime] = open_runtimes(model, [torch.device("cpu")], name="openvino", instances=1)
    parts = np.split(pictures, range(_BATCH, len(pictures), _BATCH))
    return np.concatenate([runtime.run(list(part), 1).class_ids[:, 0] for part in parts])
