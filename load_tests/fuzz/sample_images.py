"""Small valid images of every format that the service decodes. Damaged inputs are derived from them."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image, ImageCms, features

from load_tests.images import draw

NamedInput = tuple[str, bytes]
"""A name, and the bytes of an input."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_ORIENTATION: Final = 0x0112
_WIDTH: Final = 24
_HEIGHT: Final = 18


def valid_images() -> Iterator[NamedInput]:
    """Yield valid images. The service decodes them, or rejects a format that it does not support."""
    yield from _jpegs()
    yield from _pngs()
    yield from _webps()
    yield from _gifs()
    yield from _bmps()
    yield from _tiffs()


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the encoded image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sample_image(mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return a small image of this mode."""
    return draw(_WIDTH, _HEIGHT, seed).convert(mode)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with a correct checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    header: tuple[int, int, int, int, int, int, int], body: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """Return a PNG with these values of IHDR, this compressed body, and chunks before and after the body."""
    return (
        _PNG
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
        + before
        + png_chunk(b"IDAT", body)
        + after
        + png_chunk(b"IEND", b"")
    )


def exif(orientation: int) -> bytes:
    """Return EXIF data with an orientation; 1 to 8 are valid."""
    tags = Image.Exif()
    tags[_ORIENTATION] = orientation
    return tags.tobytes()


def _profile() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + bytes(12) + profile[36:]  # without the time of creation


def _frames() -> list[Image.Image]:
    return [sample_image(seed=seed) for seed in range(3)]


def _jpegs() -> Iterator[NamedInput]:
    for subsampling in range(3):
        yield f"jpeg/subsampling-{subsampling}", encode(sample_image(), "JPEG", subsampling=subsampling)
    for mode in ("L", "CMYK"):
        yield f"jpeg/{mode}", encode(sample_image(mode), "JPEG")
        yield f"jpeg/{mode}-progressive", encode(sample_image(mode), "JPEG", progressive=True)
    yield "jpeg/progressive", encode(sample_image(), "JPEG", progressive=True)
    yield "jpeg/rgb", encode(sample_image(), "JPEG", keep_rgb=True, subsampling=0)
    yield "jpeg/restarts", encode(sample_image(), "JPEG", restart_marker_blocks=1)
    yield "jpeg/comment", encode(sample_image(), "JPEG", comment=b"a comment " * 20)
    yield "jpeg/icc", encode(sample_image(), "JPEG", icc_profile=_profile())
    yield "jpeg/icc-nonsense", encode(sample_image("CMYK"), "JPEG", icc_profile=b"not a profile" * 9)
    for orientation in (0, 1, 3, 6, 8, 9, 0xFFFF):
        yield f"jpeg/orientation-{orientation}", encode(sample_image(), "JPEG", exif=exif(orientation))
    yield "jpeg/mpo", encode(sample_image(), "MPO", save_all=True, append_images=_frames()[1:])


def _pngs() -> Iterator[NamedInput]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"png/{mode}", encode(sample_image(mode), "PNG")
    for bits in (1, 2, 4):
        palette_image = sample_image().quantize(2**bits)
        yield f"png/P-{bits}", encode(palette_image, "PNG", bits=bits)
        yield f"png/P-{bits}-transparent", encode(palette_image, "PNG", bits=bits, transparency=0)
    yield "png/L-transparent", encode(sample_image("L"), "PNG", transparency=7)
    yield "png/RGB-transparent", encode(sample_image(), "PNG", transparency=(1, 2, 3))
    gray = np.asarray(sample_image("L")).astype(np.uint16) * 257
    yield "png/I;16", encode(Image.fromarray(gray), "PNG")
    for kind, channels in ((2, 3), (4, 2), (6, 4)):
        rows = b"".join(
            b"\0" + row.tobytes() for row in np.repeat(gray.astype(">u2")[..., None], channels, 2)
        )
        yield f"png/16-bit-{kind}", png((_WIDTH, _HEIGHT, 16, kind, 0, 0, 0), zlib.compress(rows))
    yield "png/interlaced", png((1, 1, 8, 0, 0, 0, 1), zlib.compress(b"\0\x80"))
    yield "png/animated", encode(_frames()[0], "PNG", save_all=True, append_images=_frames()[1:])
    yield "png/icc", encode(sample_image(), "PNG", icc_profile=_profile())
    yield "png/icc-nonsense", encode(sample_image(), "PNG", icc_profile=b"not a profile" * 9)
    yield "png/orientation", encode(sample_image(), "PNG", exif=exif(5))


def _webps() -> Iterator[NamedInput]:
    yield "webp/lossy", encode(sample_image(), "WEBP", quality=50)
    yield "webp/lossless", encode(sample_image(), "WEBP", lossless=True)
    yield "webp/alpha", encode(sample_image("RGBA"), "WEBP")
    yield "webp/orientation", encode(sample_image(), "WEBP", exif=exif(7))
    yield "webp/animated", encode(_frames()[0], "WEBP", save_all=True, append_images=_frames()[1:])


def _gifs() -> Iterator[NamedInput]:
    for mode in ("1", "L", "P"):
        yield f"gif/{mode}", encode(sample_image(mode), "GIF")
    yield "gif/interlaced", encode(sample_image("P"), "GIF", interlace=True)
    yield "gif/transparent", encode(sample_image("P"), "GIF", transparency=3)
    yield "gif/comment", encode(sample_image("P"), "GIF", comment=b"a comment")
    yield "gif/animated", encode(_frames()[0], "GIF", save_all=True, append_images=_frames()[1:], loop=0)


def _bmps() -> Iterator[NamedInput]:
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp/{mode}", encode(sample_image(mode), "BMP")


def _tiffs() -> Iterator[NamedInput]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F"):
        yield f"tiff/{mode}", encode(sample_image(mode), "TIFF")
    gray = np.asarray(sample_image("L")).astype(np.uint16) * 257
    yield "tiff/I;16", encode(Image.fromarray(gray), "TIFF")
    yield "tiff/orientation", encode(sample_image(), "TIFF", exif=exif(6))
    yield "tiff/pages", encode(_frames()[0], "TIFF", save_all=True, append_images=_frames()[1:])
    yield "tiff/big", encode(sample_image(), "TIFF", big_tiff=True)
    if not features.check("libtiff"):
        return
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "tiff_deflate"):
        yield f"tiff/{compression}", encode(sample_image(), "TIFF", compression=compression)
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        yield (
            f"tiff/{compression}-predicted",
            encode(sample_image(), "TIFF", compression=compression, tiffinfo={317: 2}),
        )
    for compression in ("tiff_ccitt", "group3", "group4"):
        yield f"tiff/{compression}", encode(sample_image("1"), "TIFF", compression=compression)
