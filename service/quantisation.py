"""Turn a network into an int8 graph: post-training quantisation by NNCF, calibrated on given pictures."""

from collections.abc import Mapping
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

    `agreement` is the share of the calibration pictures, 0..1, whose best class is the same; `pictures`
    counts them, and `unreadable` are those that were skipped, by path, with the reason.
    """

    model: Model
    agreement: float
    pictures: int
    unreadable: Mapping[str, str]


def quantise(model: Model, folder: Path, samples: int = 300) -> Quantised:
    """Quantise `model`, calibrated on up to `samples` pictures found under `folder`, always the same ones.

    Weights get a scale for each channel, activations one for each tensor, chosen so that little is clipped on
    those pictures. Raises ExtraMissing without NNCF, TrainingImpossible where no picture can be read.
    """
    if find_spec("nncf") is None:
        raise ExtraMissing("quantising needs NNCF: pip install 'resnet-service[quantize]'")
    from service.runtimes import openvino  # before NNCF, which would report to its makers as well

    import nncf  # isort: skip

    dataset = _pictures(folder, model, samples)
    pictures = dataset.pictures.permute(0, 2, 3, 1).numpy()
    quantised = nncf.quantize(
        openvino.convert(model.network, model.preprocessing),
        nncf.Dataset([picture[None] for picture in pictures]),
        subset_size=len(pictures),
    )
    result = Model(model.name, openvino.serialise(quantised), model.labels, model.preprocessing, model.source)
    same = _best(result, pictures) == _best(model, pictures)
    return Quantised(result, float(same.mean()), len(pictures), dataset.unreadable)


def _pictures(folder: Path, model: Model, samples: int) -> data.Dataset:
    if not folder.is_dir():
        raise TrainingImpossible(f"there is no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise TrainingImpossible(f"{folder} has no pictures")
    count = min(samples, len(files))
    chosen = [files[index * len(files) // count] for index in range(count)]  # from every folder
    return data.read([(path, 0) for path in chosen], (str(folder),), model.preprocessing, "reading pictures")


def _best(model: Model, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    [runtime] = open_runtimes(model, [torch.device("cpu")], name="openvino", instances=1)
    parts = np.split(pictures, range(_BATCH, len(pictures), _BATCH))
    return np.concatenate([runtime.run(list(part), 1).class_ids[:, 0] for part in parts])
