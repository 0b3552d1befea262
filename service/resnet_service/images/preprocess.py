"""Resize and crop pixels to the input size of a model.

Geometry and filter equal those of torchvision's `ImageClassification` transform, which the published weights
were evaluated with. This module does not depend on files or image formats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_service.errors import InvalidImageError

Pixels = npt.NDArray[np.uint8]
"""[H, W, 3], RGB, 0 to 255."""

Crop = npt.NDArray[np.uint8]
"""[S, S, 3], RGB, 0 to 255. Channels last is the layout that decoders write and that convolutions prefer."""


class DecodedImage(NamedTuple):
    """What a model takes of an image, and the size that the image is stored in, in pixels."""

    crop: Crop
    width: int
    height: int


MAX_SIDE: Final = 4096
"""Limit on the side of a network's input, in pixels."""

_MAX_ASPECT_RATIO: Final = 8
_ROUNDING: Final = 1 + 1e-9
"""Keeps the product of a size and its scale from being just below the integer that it should be."""


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a model: resize the short side, crop the center, normalize.

    `resize` and `crop` are in pixels, 0 < crop <= resize <= MAX_SIDE. `mean` and `std` are for RGB scaled to
    0..1; runtimes apply them on the device. Raises ValueError for values out of range.
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

    @staticmethod
    def is_elongated(width: float, height: float) -> bool:
        """Whether resizing the whole image could take gigabytes, nearly all of them cropped away."""
        return max(width, height) > _MAX_ASPECT_RATIO * min(width, height)

    def resize_and_crop(
        self,
        pixels: Pixels,
        size: tuple[float, float] | None = None,
        turn: Callable[[Pixels], Pixels] = lambda pixels: pixels,
    ) -> Crop:
        """Resize the short side and crop the center: [H, W, 3] -> [crop, crop, 3].

        `size` is the (width, height) of the image in these pixels, by default that of `pixels`. It is less
        if the image ends within its last column or row, because it was decoded at a reduced scale; not for
        elongated images. `turn` rotates and mirrors pixels between the two steps.
        """
        height, width = pixels.shape[:2]
        if self.is_elongated(width, height):
            return self.resize_and_crop_image(Image.fromarray(turn(pixels)))
        resized = turn(self._resize(pixels, size or (width, height)))
        top, left = (round((side - self.crop) / 2) for side in resized.shape[:2])
        return resized[top : top + self.crop, left : left + self.crop]

    def _resize(self, pixels: Pixels, size: tuple[float, float]) -> Pixels:
        # Imported here, because the processes of the sandbox use only `resize_and_crop_image`: without torch
        # they start in 0.1 s instead of 2 s and take 30 MB instead of 300 MB.
        import torch

        new_width, new_height = self._resized_size(*size)
        target: dict[str, Any] = {"size": (new_height, new_width)}
        if size != (pixels.shape[1], pixels.shape[0]):
            # The scales place the samples, and torch rounds the size that follows from them down.
            scales = (new_height / size[1], new_width / size[0])
            scales = (scales[0] * _ROUNDING, scales[1] * _ROUNDING)
            target = {"scale_factor": scales, "recompute_scale_factor": False}
        # NumPy views, because each call into torch releases the GIL and waits to reacquire it. The batch
        # dimension is added before the transposition; otherwise torch does not detect channels last.
        image = pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(image), mode=self.interpolation, antialias=True, **target
        )
        result: Pixels = resized.numpy()[0].transpose(1, 2, 0)
        return result

    def resize_and_crop_image(self, image: Image.Image) -> Crop:
        """Do the same with Pillow, for an image in mode RGB; only the pixels of the crop are computed.

        They differ from those of `resize_and_crop` by at most one gray level (bilinear). A large
        photograph takes longer than with torch, an elongated image much less time and memory.
        """
        new_width, new_height = self._resized_size(*image.size)
        left, top = round((new_width - self.crop) / 2), round((new_height - self.crop) / 2)
        scale_x, scale_y = image.width / new_width, image.height / new_height
        box = (
            left * scale_x,
            top * scale_y,
            min((left + self.crop) * scale_x, image.width),  # rounding may exceed the edge by 1e-13
            min((top + self.crop) * scale_y, image.height),
        )
        resample = Image.Resampling[self.interpolation.upper()]
        # A copy, because torch requires writable memory.
        return np.array(image.resize((self.crop, self.crop), resample, box))

    def _resized_size(self, width: float, height: float) -> tuple[int, int]:
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    def denormalize(self, values: npt.NDArray[np.float32]) -> Crop:
        """Invert the normalization: `values` [3, S, S] -> crop [S, S, 3], rounded and clipped to 0..255.

        Raises InvalidImageError if a value is not finite.
        """
        if not np.isfinite(values).all():
            raise InvalidImageError("the input has values that are not finite")
        mean, std = np.array([self.mean, self.std], np.float32).reshape(2, 3, 1, 1) * 255
        with np.errstate(over="ignore"):  # infinite values are clipped
            levels = np.rint(values * std + mean).clip(0, 255)
        return np.ascontiguousarray(levels.transpose(1, 2, 0), np.uint8)
