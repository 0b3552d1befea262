"""The images that requests carry: generated or from a folder, and data that is not a valid image."""

import io
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from load_tests.service import LoadTestError

ImageKind = Literal["typical", "mixed", "bad"]
"""The usual size, any size, and data that cannot be decoded."""

_TYPICAL_SIZE: Final = (500, 375)
"""The median size of ImageNet's images, in pixels."""
_MIXED_SIZES: Final = (
    (32, 32),
    (224, 224),
    *(_TYPICAL_SIZE,) * 3,
    (1024, 768),
    (1920, 1080),
    (4000, 3000),
)
_TYPICAL_IMAGES: Final = 8
_MAX_IMAGES: Final = 200


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw smooth colors with a little noise, so that codecs and filters have work to do."""
    random = np.random.default_rng(seed)
    across = np.linspace(0, 255, width)[None, :, None]
    down = np.linspace(0, 255, height)[:, None, None]
    pixels = across * random.uniform(0.2, 0.5, 3) + down * random.uniform(0.2, 0.5, 3)
    pixels = np.clip(pixels + random.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def encode_jpeg(size: tuple[int, int], seed: int = 0) -> bytes:
    """Return a drawn image of this width and height as JPEG."""
    buffer = io.BytesIO()
    draw(*size, seed).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def encoded_images(kind: ImageKind, folder: Path | None = None) -> list[bytes]:
    """Return the encoded images of a kind; with `folder`, its JPEG files are the typical images.

    Raises LoadTestError if the folder contains no JPEG file.
    """
    if kind == "mixed":
        return [encode_jpeg(size, seed) for seed, size in enumerate(_MIXED_SIZES)]
    if kind == "bad":
        valid = encode_jpeg(_TYPICAL_SIZE, seed=0)
        return [b"", b"no image", valid[: len(valid) // 2], valid[:2] + bytes(1000), b"GIF89a"]
    if folder is None:
        return [encode_jpeg(_TYPICAL_SIZE, seed) for seed in range(_TYPICAL_IMAGES)]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise LoadTestError(f"no JPEG files in {folder}")
    return [path.read_bytes() for path in paths[:_MAX_IMAGES]]
