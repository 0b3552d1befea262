"""What the requests carry: pictures drawn here, or one's own, and things that are no pictures."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from load_tests.scenarios import Kind

_TYPICAL: Final = (500, 375)
"""The median size of ImageNet's pictures."""

_SIZES: Final = ((32, 32), (224, 224), _TYPICAL, _TYPICAL, _TYPICAL, (1024, 768), (1920, 1080), (4000, 3000))
_MOST_PICTURES: Final = 200


@dataclass(frozen=True)
class Payload:
    """A request's body and its media type."""

    content: bytes
    media_type: str


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw smooth colours with a little noise, so that codecs and filters have something to do."""
    random = np.random.default_rng(seed)
    across = np.linspace(0, 255, width)[None, :, None]
    down = np.linspace(0, 255, height)[:, None, None]
    pixels = across * random.uniform(0.2, 0.5, 3) + down * random.uniform(0.2, 0.5, 3)
    pixels = np.clip(pixels + random.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _jpeg(width: int, height: int, seed: int, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    draw(width, height, seed).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def payloads(kind: Kind, folder: Path | None) -> list[Payload]:
    """Return what requests of a kind may carry; with `folder`, its .jpg files are the typical pictures."""
    match kind:
        case "mixed":
            contents = [_jpeg(width, height, seed) for seed, (width, height) in enumerate(_SIZES)]
        case "bad":
            whole = _jpeg(*_TYPICAL, seed=0)
            contents = [b"", b"no picture", whole[: len(whole) // 2], whole[:2] + bytes(1000), b"GIF89a"]
        case "typical" | "hang-up" if folder is None:
            contents = [_jpeg(*_TYPICAL, seed) for seed in range(8)]
        case "typical" | "hang-up":
            contents = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:_MOST_PICTURES]]
            if not contents:
                raise FileNotFoundError(f"no .jpg in {folder}")
    return [Payload(content, "image/jpeg") for content in contents]
