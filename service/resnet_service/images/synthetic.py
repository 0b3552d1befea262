"""Synthetic images: three drawn scenes for trying a classifier, and noise for benchmarks."""

import io
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

_SIDE: Final = 320
_SUPERSAMPLING: Final = 3
"""Shapes are drawn at this multiple of the size, for smooth edges."""


def synthetic_scenes() -> Mapping[str, bytes]:
    """Return the scenes as JPEG files, 320x320, by the object that they show; deterministic."""
    return {name: _scene(*scene) for name, scene in _SCENES.items()}


def noise_jpeg(width: int = 500, height: int = 375, seed: int = 0) -> bytes:
    """Return a JPEG that decodes about as slowly as a photograph; the default size is ImageNet's median."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return _jpeg(smooth + random.normal(0, 12, (height, width, 3)))


class _Canvas:
    """Draws filled shapes; coordinates are fractions of the side, 0..1, from the top left."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)
        self._side = image.width

    def polygon(self, color: str, *points: float) -> None:
        self._draw.polygon([value * self._side for value in points], color)

    def ellipse(self, color: str, x: float, y: float, radius_x: float, radius_y: float) -> None:
        box = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        self._draw.ellipse([value * self._side for value in box], color)


def _airplane(canvas: _Canvas) -> None:
    canvas.polygon("#8b97a6", 0.52, 0.47, 0.36, 0.22, 0.43, 0.21, 0.64, 0.46)
    canvas.ellipse("#e9edf1", 0.50, 0.50, 0.42, 0.062)
    canvas.polygon("#e9edf1", 0.10, 0.50, 0.05, 0.30, 0.12, 0.30, 0.26, 0.47)
    canvas.polygon("#b8c2ce", 0.12, 0.535, 0.88, 0.525, 0.80, 0.555, 0.25, 0.56)
    canvas.polygon("#9aa6b4", 0.55, 0.53, 0.33, 0.82, 0.41, 0.82, 0.68, 0.53)
    canvas.polygon("#9aa6b4", 0.14, 0.49, 0.04, 0.56, 0.09, 0.565, 0.24, 0.51)
    canvas.ellipse("#5b6674", 0.47, 0.66, 0.05, 0.022)
    canvas.polygon("#2f3d4f", 0.84, 0.475, 0.89, 0.48, 0.87, 0.495, 0.83, 0.495)


def _automobile(canvas: _Canvas) -> None:
    canvas.polygon("#6d6f72", 0, 0.66, 1, 0.66, 1, 1, 0, 1)
    canvas.ellipse("#3c3d3f", 0.5, 0.765, 0.42, 0.03)
    canvas.polygon(
        "#c3202b", 0.08, 0.72, 0.08, 0.58, 0.14, 0.54, 0.27, 0.52, 0.37, 0.39, 0.66, 0.39, 0.78, 0.52,
        0.90, 0.56, 0.93, 0.63, 0.93, 0.72,
    )  # fmt: skip
    canvas.polygon("#26323e", 0.31, 0.52, 0.39, 0.42, 0.50, 0.42, 0.50, 0.52)
    canvas.polygon("#26323e", 0.53, 0.52, 0.53, 0.42, 0.64, 0.42, 0.72, 0.52)
    canvas.polygon("#8d151e", 0.08, 0.66, 0.93, 0.66, 0.93, 0.72, 0.08, 0.72)
    canvas.polygon("#f4e9b0", 0.88, 0.58, 0.92, 0.60, 0.92, 0.63, 0.88, 0.62)
    for x in (0.27, 0.74):
        canvas.ellipse("#151515", x, 0.71, 0.088, 0.088)
        canvas.ellipse("#b9bcc0", x, 0.71, 0.046, 0.046)


def _ship(canvas: _Canvas) -> None:
    canvas.polygon("#1f4e73", 0, 0.66, 1, 0.66, 1, 1, 0, 1)
    canvas.polygon("#f2f4f5", 0.28, 0.50, 0.28, 0.41, 0.72, 0.41, 0.76, 0.50)
    canvas.polygon("#e2e6e9", 0.34, 0.41, 0.34, 0.34, 0.60, 0.34, 0.62, 0.41)
    canvas.polygon("#b4282e", 0.42, 0.34, 0.43, 0.22, 0.51, 0.22, 0.52, 0.34)
    canvas.polygon("#20262c", 0.43, 0.25, 0.43, 0.22, 0.51, 0.22, 0.51, 0.25)
    canvas.polygon("#2b3640", 0.10, 0.50, 0.93, 0.50, 0.84, 0.69, 0.18, 0.69)
    canvas.polygon("#a32a2c", 0.165, 0.655, 0.855, 0.655, 0.84, 0.69, 0.18, 0.69)
    for x in np.linspace(0.31, 0.69, 9):
        canvas.polygon("#37485a", x, 0.44, x + 0.02, 0.44, x + 0.02, 0.465, x, 0.465)
    canvas.polygon("#cfe0ea", 0.12, 0.685, 0.90, 0.685, 0.94, 0.70, 0.08, 0.70)


_SCENES: Final[Mapping[str, tuple[Callable[[_Canvas], None], str, str]]] = {
    "airplane": (_airplane, "#4f8fd0", "#cfe4f5"),
    "automobile": (_automobile, "#9fb4c4", "#d9d6c8"),
    "ship": (_ship, "#7fb2dd", "#e6eef3"),
}
"""Name -> function that draws the object, and the color of the background at the top and at the bottom."""


def _scene(draw: Callable[[_Canvas], None], top: str, bottom: str) -> bytes:
    side = _SIDE * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), top)
    gradient = Image.fromarray(np.linspace(0, 255, side).astype(np.uint8)[:, None].repeat(side, 1))
    image.paste(Image.new("RGB", image.size, bottom), mask=gradient)
    draw(_Canvas(image))
    small = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(0.8))
    grain = np.random.default_rng(0).normal(0, 4, (_SIDE, _SIDE, 1))  # as in a photograph
    return _jpeg(np.asarray(small) + grain)


def _jpeg(pixels: npt.NDArray[np.float64]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
