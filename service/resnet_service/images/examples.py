"""Images for trying and measuring a model without files: photographs of the package, and noise."""

import io
from collections.abc import Mapping
from importlib import resources

import numpy as np
from PIL import Image


def example_photographs() -> Mapping[str, bytes]:
    """Return the JPEG files of the package by name, such as "cat.jpg"; photographs/README.md has sources."""
    folder = resources.files("resnet_service.images") / "photographs"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name: file.read_bytes() for file in files if file.name.endswith(".jpg")}


def noise_jpeg(width: int = 500, height: int = 375, seed: int = 0) -> bytes:
    """Return a JPEG that decodes about as slowly as a photograph; the default size is ImageNet's median."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    pixels = smooth + random.normal(0, 12, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
