"""Decoding equals that of ImageMagick, another decoder, for every size, orientation, sampling and depth."""

import io
import shutil
import subprocess
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional

from resnet_service.errors import UnsupportedMediaType
from resnet_service.images import Preprocessing, decode_image
from tests.support import PHOTOGRAPHS
from tests.support.images import difference, encode

pytestmark = pytest.mark.skipif(
    shutil.which("convert") is None or shutil.which("cjpeg") is None,
    reason="needs Debian's packages imagemagick and libjpeg-turbo-progs",
)

SIDE = 32
SMALL = Preprocessing(SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def photograph(width: int, height: int) -> Image.Image:
    """Return a photograph of this size."""
    with Image.open(PHOTOGRAPHS / "astronaut.jpg") as image:
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def reference(data: bytes, kind: str) -> npt.NDArray[np.uint8]:
    """Decode with ImageMagick, upright and on white, and resize as the models' transforms do."""
    command = ["convert", f"{kind}:-[0]", "-auto-orient", "+repage", "-background", "white", "-flatten"]
    output = subprocess.run(
        [*command, "-depth", "8", "ppm:-"], input=data, capture_output=True, check=True
    ).stdout
    with Image.open(io.BytesIO(output)) as image:
        resized = functional.resize(image.convert("RGB"), SIDE, antialias=True)
    return np.asarray(functional.center_crop(resized, SIDE))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_of_every_size_and_orientation_equals_imagemagick(orientation: int) -> None:
    """Both sides with every remainder modulo 8, and each sampling of Pillow's encoder."""
    differences = []
    for number, rest in enumerate(range(8)):
        size = 384 + rest, 272 + 5 * rest % 8
        encoded = encode(photograph(*size), quality=92, subsampling=number % 3, exif=exif(orientation))
        differences.append(difference(decode_image(encoded, SMALL), reference(encoded, "jpg")))
    assert max(differences) < 0.8


@pytest.mark.parametrize("sampling", ["1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4"])
@pytest.mark.parametrize("options", [[], ["-progressive"], ["-arithmetic"], ["-restart", "1"]])
def test_jpeg_of_every_sampling_equals_imagemagick(sampling: str, options: list[str]) -> None:
    """4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1, 4:4:1, 4:1:0 and 2x4, at sides that are not multiples of a block."""
    for size in ((211, 149), (389, 275)):
        pixels = encode(photograph(*size), "PPM")
        command = ["cjpeg", "-quality", "92", "-sample", sampling, *options]
        encoded = subprocess.run(command, input=pixels, capture_output=True, check=True).stdout
        assert difference(decode_image(encoded, SMALL), reference(encoded, "jpg")) < 0.8


TIFF_OPTIONS = [
    *product(
        (["-colorspace", "gray"], ["-type", "TrueColor"], ["-colorspace", "CMYK"], ["-type", "palette"]),
        (["-depth", "8"], ["-depth", "16"]),
        (["-compress", "none"], ["-compress", "lzw"], ["-compress", "zip"], ["-compress", "jpeg"]),
        ([], ["-endian", "msb"], ["-interlace", "plane"], ["-define", "tiff:fill-order=lsb"]),
    ),
    (["-monochrome"], [], ["-compress", "group4"], []),
    (["-monochrome"], [], ["-compress", "fax"], []),
    (["-colorspace", "gray"], ["-depth", "12"], ["-compress", "none"], []),
    (["-colorspace", "gray"], ["-depth", "16"], [], ["-define", "quantum:polarity=min-is-white"]),
    (["-colorspace", "Lab"], ["-depth", "8"], [], []),
    (["-colorspace", "YCbCr"], ["-depth", "8"], [], []),
]


@pytest.mark.parametrize("options", TIFF_OPTIONS, ids=lambda options: " ".join(chain(*options)))
def test_tiff_equals_imagemagick_or_is_unsupported(options: tuple[list[str], ...], tmp_path: Path) -> None:
    """Files that ImageMagick writes, in each color space, depth, compression and layout."""
    source, target = tmp_path / "source.png", tmp_path / "target.tif"
    photograph(120, 90).save(source)
    subprocess.run(["convert", source, *chain(*options), target], check=True)
    encoded = target.read_bytes()
    try:
        crop = decode_image(encoded, SMALL)
    except UnsupportedMediaType:
        return
    assert difference(crop, reference(encoded, "tif")) < 1.5


@pytest.mark.parametrize("depth", ["1", "2", "4", "8", "16"])
@pytest.mark.parametrize("kind", ["Grayscale", "TrueColor", "Palette"])
@pytest.mark.parametrize("extra", [[], ["-interlace", "PNG"], ["-transparent", "white"]])
def test_png_equals_imagemagick(depth: str, kind: str, extra: list[str], tmp_path: Path) -> None:
    """In each depth and color type, interlaced, and with a transparent color."""
    source, target = tmp_path / "source.png", tmp_path / "target.png"
    photograph(120, 90).save(source)
    arguments: list[Any] = [source, "-colors", "200", "-type", kind, *extra, "-depth", depth]
    subprocess.run(["convert", *arguments, target], check=True)
    encoded = target.read_bytes()
    assert difference(decode_image(encoded, SMALL), reference(encoded, "png")) < 1.0
