"""Image files that tests generate, and reference pixels to compare crops with."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms import functional

from load_tests.images import draw


def make_image(width: int = 64, height: int = 48, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return a deterministic image of smooth colors with noise, in any of Pillow's modes."""
    return draw(width, height, seed).convert(mode)


def encode(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:  # noqa: A002
    """Return the image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def difference(crop: npt.ArrayLike, expected: npt.ArrayLike | Image.Image) -> float:
    """Return the mean absolute difference in gray levels."""
    return float(np.abs(np.asarray(crop, int) - np.asarray(expected).astype(int)).mean())


def transformed(encoded: bytes, transform: Any) -> npt.NDArray[np.uint8]:
    """Return the crop of torchvision's transform, applied to Pillow's pixels, before normalization."""
    with Image.open(io.BytesIO(encoded)) as image:
        resized = functional.resize(
            image.convert("RGB"), transform.resize_size, transform.interpolation, antialias=True
        )
    return np.asarray(functional.center_crop(resized, transform.crop_size))


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of one color, a few KB in size, that decodes to `width` x `height` pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = b"\0" * (1 + (width + 7) // 8)
    compressor = zlib.compressobj(9)
    body = b"".join(compressor.compress(row * 100) for _ in range(height // 100)) + compressor.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
