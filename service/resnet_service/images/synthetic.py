"""Images made here: three scenes to try a classifier on, and noise to measure with."""

import io
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

_SIDE: Final = 320
_FINER: Final = 3
"""Times larger that shapes are drawn, so that their edges come out smooth."""


def synthetic_scenes() -> Mapping[str, bytes]:
    """Draw each image and return it as a JPEG, by what it shows; the same bytes each time."""
    return {name: _scene(*scene) for name, scene in _SCENES.items()}


def noise_jpeg(width: int = 500, height: int = 375, seed: int = 0) -> bytes:
    """Return a JPEG that decodes about as slowly as a photograph; by default of ImageNet's median size."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return _jpeg(smooth + random.normal(0, 12, (height, width, 3)))


class _Pen:
    """Draws in parts of the side, 0..1, from the top left."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)
        self._side = image.width

    def shape(self, color: str, *points: float) -> None:
        self._draw.polygon([value * self._side for value in points], color)

    def oval(self, color: str, x: float, y: float, across: float, down: float) -> None:
        box = (x - across, y - down, x + across, y + down)
        self._draw.ellipse([value * self._side for value in box], color)


def _airplane(pen: _Pen) -> None:
    pen.shape("#8b97a6", 0.52, 0.47, 0.36, 0.22, 0.43, 0.21, 0.64, 0.46)
    pen.oval("#e9edf1", 0.50, 0.50, 0.42, 0.062)
    pen.shape("#e9edf1", 0.10, 0.50, 0.05, 0.30, 0.12, 0.30, 0.26, 0.47)
    pen.shape("#b8c2ce", 0.12, 0.535, 0.88, 0.525, 0.80, 0.555, 0.25, 0.56)
    pen.shape("#9aa6b4", 0.55, 0.53, 0.33, 0.82, 0.41, 0.82, 0.68, 0.53)
    pen.shape("#9aa6b4", 0.14, 0.49, 0.04, 0.56, 0.09, 0.565, 0.24, 0.51)
    pen.oval("#5b6674", 0.47, 0.66, 0.05, 0.022)
    pen.shape("#2f3d4f", 0.84, 0.475, 0.89, 0.48, 0.87, 0.495, 0.83, 0.495)


def _automobile(pen: _Pen) -> None:
    pen.shape("#6d6f72", 0, 0.66, 1, 0.66, 1, 1, 0, 1)
    pen.oval("#3c3d3f", 0.5, 0.765, 0.42, 0.03)
    pen.shape(
        "#c3202b", 0.08, 0.72, 0.08, 0.58, 0.14, 0.54, 0.27, 0.52, 0.37, 0.39, 0.66, 0.39, 0.78, 0.52,
        0.90, 0.56, 0.93, 0.63, 0.93, 0.72,
    )  # fmt: skip
    pen.shape("#26323e", 0.31, 0.52, 0.39, 0.42, 0.50, 0.42, 0.50, 0.52)
    pen.shape("#26323e", 0.53, 0.52, 0.53, 0.42, 0.64, 0.42, 0.72, 0.52)
    pen.shape("#8d151e", 0.08, 0.66, 0.93, 0.66, 0.93, 0.72, 0.08, 0.72)
    pen.shape("#f4e9b0", 0.88, 0.58, 0.92, 0.60, 0.92, 0.63, 0.88, 0.62)
    for x in (0.27, 0.74):
        pen.oval("#151515", x, 0.71, 0.088, 0.088)
        pen.oval("#b9bcc0", x, 0.71, 0.046, 0.046)


def _ship(pen: _Pen) -> None:
    pen.shape("#1f4e73", 0, 0.66, 1, 0.66, 1, 1, 0, 1)
    pen.shape("#f2f4f5", 0.28, 0.50, 0.28, 0.41, 0.72, 0.41, 0.76, 0.50)
    pen.shape("#e2e6e9", 0.34, 0.41, 0.34, 0.34, 0.60, 0.34, 0.62, 0.41)
    pen.shape("#b4282e", 0.42, 0.34, 0.43, 0.22, 0.51, 0.22, 0.52, 0.34)
    pen.shape("#20262c", 0.43, 0.25, 0.43, 0.22, 0.51, 0.22, 0.51, 0.25)
    pen.shape("#2b3640", 0.10, 0.50, 0.93, 0.50, 0.84, 0.69, 0.18, 0.69)
    pen.shape("#a32a2c", 0.165, 0.655, 0.855, 0.655, 0.84, 0.69, 0.18, 0.69)
    for x in np.linspace(0.31, 0.69, 9):
        pen.shape("#37485a", x, 0.44, x + 0.02, 0.44, x + 0.02, 0.465, x, 0.465)
    pen.shape("#cfe0ea", 0.12, 0.685, 0.90, 0.685, 0.94, 0.70, 0.08, 0.70)


_SCENES: Final[Mapping[str, tuple[Callable[[_Pen], None], str, str]]] = {
    "airplane": (_airplane, "#4f8fd0", "#cfe4f5"),
    "automobile": (_automobile, "#9fb4c4", "#d9d6c8"),
    "ship": (_ship, "#7fb2dd", "#e6eef3"),
}
"""What is drawn, and the sky behind it: its color at the top and at the bottom."""


def _scene(draw: Callable[[_Pen], None], top: str, bottom: str) -> bytes:
    side = _SIDE * _FINER
    canvas = Image.new("RGB", (side, side), top)
    shade = Image.fromarray(np.linspace(0, 255, side).astype(np.uint8)[:, None].repeat(side, 1))
    canvas.paste(Image.new("RGB", canvas.size, bottom), mask=shade)
    draw(_Pen(canvas))
    small = canvas.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(0.8))
    grain = np.random.default_rng(0).normal(0, 4, (_SIDE, _SIDE, 1))  # no camera's image is without
    return _jpeg(np.asarray(small) + grain)


def _jpeg(pixels: npt.NDArray[np.float64]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
