"""What the requests carry: pictures drawn here, or one's own, and things that are no pictures."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from load_tests.scenarios import Kind

_SIZES: Final = (
    (32, 32),
    (224, 224),
    (500, 375),
    (500, 375),
    (500, 375),
    (1024, 768),
    (1920, 1080),
    (4000, 3000),
)


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


def payloads(folder: Path | None) -> dict[Kind, list[Payload]]:
    """Return what each kind of request may carry; with `folder`, its .jpg files are the typical pictures."""
    if folder is None:
        typical = [_jpeg(500, 375, seed) for seed in range(8)]
    else:
        typical = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:200]]
    mixed = [_jpeg(width, height, seed) for seed, (width, height) in enumerate(_SIZES)]
    whole = mixed[2]
    bad = [b"", b"no picture", whole[: len(whole) // 2], b"\xff\xd8" + bytes(1000), b"GIF89a" + bytes(20)]
    pictures = [Payload(content, "image/jpeg") for content in typical]
    return {
        "typical": pictures,
        "hang-up": pictures,
        "mixed": [Payload(content, "image/jpeg") for content in mixed],
        "bad": [Payload(content, "image/jpeg") for content in bad] + [Payload(b"{}", "application/json")],
    }
