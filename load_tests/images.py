"""What the requests carry: images drawn here, or one's own, and bytes that are no images."""

import io
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from load_tests.scenarios import Kind

_TYPICAL: Final = (500, 375)
"""The median size of ImageNet's images."""

_SIZES: Final = ((32, 32), (224, 224), _TYPICAL, _TYPICAL, _TYPICAL, (1024, 768), (1920, 1080), (4000, 3000))
_MOST_IMAGES: Final = 200


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw smooth colors with a little noise, so that codecs and filters have something to do."""
    random = np.random.default_rng(seed)
    across = np.linspace(0, 255, width)[None, :, None]
    down = np.linspace(0, 255, height)[:, None, None]
    pixels = across * random.uniform(0.2, 0.5, 3) + down * random.uniform(0.2, 0.5, 3)
    pixels = np.clip(pixels + random.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _jpeg(size: tuple[int, int], seed: int) -> bytes:
    buffer = io.BytesIO()
    draw(*size, seed).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def payloads(kind: Kind, folder: Path | None) -> list[bytes]:
    """Return what requests of a kind may carry; with `folder`, its JPEGs are the typical images.

    Raises FileNotFoundError where there is none in it.
    """
    if kind == "mixed":
        return [_jpeg(size, seed) for seed, size in enumerate(_SIZES)]
    if kind == "bad":
        whole = _jpeg(_TYPICAL, seed=0)
        return [b"", b"no image", whole[: len(whole) // 2], whole[:2] + bytes(1000), b"GIF89a"]
    if folder is None:
        return [_jpeg(_TYPICAL, seed) for seed in range(8)]
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise FileNotFoundError(f"no JPEG in {folder}")
    return [path.read_bytes() for path in found[:_MOST_IMAGES]]
