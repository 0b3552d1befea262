"""What a model asks of an image, and the resizing that gives it.

The geometry and the filter are those of torchvision's `ImageClassification` transform, so a crop equals what
the published weights were evaluated with. Knows nothing of files or formats.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from resnet_service.errors import InvalidImageError

Pixels = npt.NDArray[np.uint8]
"""[H, W, 3], RGB, 0 to 255."""

Crop = npt.NDArray[np.uint8]
"""[S, S, 3], RGB, 0 to 255. Channels last: what the decoders produce and what convolutions want."""

MAX_SIDE: Final = 4096
"""The largest side of a network's input, in pixels."""

_MAX_ASPECT: Final = 8  # beyond, a whole resized image could be gigabytes, nearly all of it cropped away


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input: resize the short side, crop the center, normalize.

    `resize` and `crop` are in pixels; `mean` and `std` are for RGB scaled to 0..1, and are applied
    on the device, not here.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize <= MAX_SIDE:
            raise ValueError(f"need 0 < crop <= resize <= {MAX_SIDE}, got {self.crop} and {self.resize}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("mean and std must be finite, std above zero")

    def resize_and_crop(self, pixels: Pixels, size: tuple[int, int] | None = None) -> Crop:
        """Resize the short side and crop the center.

        `size`, (width, height), is the image's own where `pixels` were decoded to fewer than it has.
        """
        width, height = size or (pixels.shape[1], pixels.shape[0])
        if width <= height:
            new_width, new_height = self.resize, int(self.resize * height / width)
        else:
            new_width, new_height = int(self.resize * width / height), self.resize
        left = round((new_width - self.crop) / 2)
        top = round((new_height - self.crop) / 2)
        if max(width, height) > _MAX_ASPECT * min(width, height):
            return self._crop_only_resize(pixels, new_width, new_height, left, top)
        # NumPy's views, because each call into torch gives the GIL away and waits to get it back. The batch
        # of one comes before the transposition, or torch would not see that the channels are last.
        image = pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(image), (new_height, new_width), mode=self.interpolation, antialias=True
        )
        crop: Crop = resized.numpy()[0].transpose(1, 2, 0)
        return crop[top : top + self.crop, left : left + self.crop]

    def denormalize(self, values: npt.NDArray[np.float32]) -> Crop:
        """Return the crop whose normalization is `values`, [3, S, S], rounded and clipped to gray levels.

        Raises InvalidImageError where a value is not finite.
        """
        if not np.isfinite(values).all():
            raise InvalidImageError("the input has values that are not finite")
        mean, std = np.array([self.mean, self.std], np.float32).reshape(2, 3, 1, 1) * 255
        with np.errstate(over="ignore"):  # what becomes infinite is clipped
            levels = np.rint(values * std + mean).clip(0, 255)
        return np.ascontiguousarray(levels.transpose(1, 2, 0), np.uint8)

    def _crop_only_resize(self, pixels: Pixels, new_width: int, new_height: int, left: int, top: int) -> Crop:
        """Compute the pixels of the crop only, which differ by at most one gray level (bilinear)."""
        height, width, _ = pixels.shape
        across, down = width / new_width, height / new_height
        box = (
            left * across,
            top * down,
            min((left + self.crop) * across, width),  # rounding may step over the edge by 1e-13
            min((top + self.crop) * down, height),
        )
        resample = Image.Resampling[self.interpolation.upper()]
        resized = Image.fromarray(pixels).resize((self.crop, self.crop), resample, box)
        return np.array(resized)  # a copy, because torch wants to be able to write
