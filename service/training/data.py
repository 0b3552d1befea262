"""Labelled folders of pictures as uint8 tensors in memory, and their augmentation in batches.

Pictures take the same road as in serving (`service.images.decode`), so a model is trained on exactly what it
will be served.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from service import images
from service.errors import ServiceError, TrainingImpossible
from service.images import Preprocessing


@dataclass(frozen=True)
class Dataset:
    """Pictures [N, 3, S, S] uint8, channels last in memory, and class indices [N] int64."""

    pictures: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders under `folder`, sorted: their order is the class index.

    Raises TrainingImpossible where there are fewer than two.
    """
    if not folder.is_dir():
        raise TrainingImpossible(f"there is no folder {folder}")
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _hidden(entry)))
    if len(names) < 2:
        raise TrainingImpossible(f"{folder} needs at least two class folders, found {len(names)}")
    return names


def load_folder(folder: Path, labels: tuple[str, ...], preprocessing: Preprocessing) -> Dataset:
    """Decode folder/CLASS/* for every class of `labels`, in order of path.

    Raises TrainingImpossible, naming the file, for a picture that cannot be decoded, and for an empty class.
    """
    paths: list[Path] = []
    targets: list[int] = []
    for index, label in enumerate(labels):
        found = sorted(path for path in (folder / label).glob("*") if path.is_file() and not _hidden(path))
        if not found:
            raise TrainingImpossible(f"{folder / label} holds no pictures")
        paths += found
        targets += [index] * len(found)
    decode = partial(_decode_file, preprocessing=preprocessing)
    with ThreadPoolExecutor() as pool:
        crops = list(tqdm(pool.map(decode, paths), f"reading {folder.name}", len(paths), unit="picture"))
    pictures = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return Dataset(pictures, torch.tensor(targets))


def _decode_file(path: Path, preprocessing: Preprocessing) -> images.Crop:
    try:
        return images.decode(path.read_bytes(), preprocessing)
    except ServiceError as error:
        raise TrainingImpossible(f"{path}: {error}") from error


def _hidden(path: Path) -> bool:
    """Say whether it is the system's, not a class or a picture: .DS_Store, .ipynb_checkpoints, Thumbs.db."""
    return path.name.startswith(".") or path.name == "Thumbs.db"


def augment(pictures: Tensor, generator: torch.Generator, shift: int = 4, hole: int = 8) -> Tensor:
    """Shift by up to `shift` pixels (edges reflected), mirror half, and grey out one square each.

    Takes and gives [N, 3, S, S] float. The square of `hole` pixels is cutout (DeVries and Taylor, 2017).
    """
    count, _, _, size = pictures.shape
    device = pictures.device
    rows = torch.arange(count, device=device)

    def random(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator).to(device)

    windows = functional.pad(pictures, (shift,) * 4, mode="reflect").unfold(2, size, 1).unfold(3, size, 1)
    pictures = windows[rows, :, random(2 * shift + 1), random(2 * shift + 1)]
    mirrored = random(2).bool()[:, None, None, None]
    pictures = torch.where(mirrored, pictures.flip(3), pictures)
    pixel = torch.arange(size, device=device)
    inside_rows = (pixel - random(size)[:, None] + hole // 2).div(hole, rounding_mode="floor") == 0
    inside_columns = (pixel - random(size)[:, None] + hole // 2).div(hole, rounding_mode="floor") == 0
    return pictures.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0)
