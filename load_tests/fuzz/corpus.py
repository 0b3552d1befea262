"""A corpus of invalid, damaged and hostile images, each with a name; the same in every run."""

import gzip
import io
import random
import struct
import zipfile
from collections.abc import Iterator
from typing import Final

from load_tests.fuzz.decompression_bombs import bombs
from load_tests.fuzz.jpeg_kinds import jpeg_kinds
from load_tests.fuzz.sample_images import NamedInput, encode, exif, png_chunk, sample_image, valid_images
from load_tests.fuzz.tiff_kinds import tiff_kinds

_CUT_INTERVAL: Final = 64
"""Bytes between the positions at which images are cut."""
_VARIANTS: Final = 16
"""Variants of each image with flipped bits, and as many with replaced bytes."""

_EXTREME_BYTES: Final = (0x00, 0x7F, 0x80, 0xFF)
_MAGIC: Final = {
    "jpeg": b"\xff\xd8\xff",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\xff\xff\xff\xffWEBP",
    "gif": b"GIF89a",
    "bmp": b"BM",
    "tiff": b"II*\0",
    "tiff-big-endian": b"MM\0*",
    "tiff-big": b"II+\0",
}


def corpus() -> Iterator[NamedInput]:
    """Yield every input: several thousand, generated in memory within a few seconds."""
    valid = list(valid_images())
    yield from ((f"whole/{name}", data) for name, data in valid)
    yield from bombs()
    yield from _other_data()
    yield from jpeg_kinds()
    yield from tiff_kinds()
    yield from _extreme_metadata()
    yield from _png_metadata()
    yield from _polyglots(dict(valid))
    for name, data in valid:
        yield from _truncated(name, data)
        yield from _damaged(name, data)
    yield from _crossed(valid)


def _other_data() -> Iterator[NamedInput]:
    rng = random.Random(0)
    yield "none/empty", b""
    yield "none/text", b"This is not an image. " * 20
    yield "none/html", b"<!DOCTYPE html><html><body onload=alert(1)></body></html>"
    yield "none/svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "none/pdf", b"%PDF-1.7\n1 0 obj <<>> endobj\ntrailer <<>>\n%%EOF"
    yield "none/wav", b"RIFF\x24\0\0\0WAVEfmt " + bytes(100)
    yield "none/elf", b"\x7fELF\2\1\1" + bytes(57)
    yield "none/zip", _archive()
    yield "none/gzip", gzip.compress(encode(sample_image(), "JPEG"), mtime=0)
    yield "none/text-like-bmp", b"BM is how this text begins. " * 20
    for kind in ("PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "EPS", "AVIF"):
        yield f"none/{kind.lower()}", encode(sample_image(), kind)
    for length in (1, 2, 3, 4, 7, 8, 12, 16, 64, 1024):
        yield f"none/zeros-{length}", bytes(length)
        yield f"none/ones-{length}", b"\xff" * length
        yield f"none/noise-{length}", rng.randbytes(length)
    for name, magic in _MAGIC.items():
        yield f"none/{name}-magic", magic
        for length in (1, 8, 100, 1000):
            yield f"none/{name}-and-zeros-{length}", magic + bytes(length)
            yield f"none/{name}-and-ones-{length}", magic + b"\xff" * length
            yield f"none/{name}-and-noise-{length}", magic + rng.randbytes(length)


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("readme.txt"), "something else")
    return buffer.getvalue()


def _polyglots(valid: dict[str, bytes]) -> Iterator[NamedInput]:
    """Yield files that are an image and a file of another type at once."""
    html = b"<html><script>alert(1)</script></html>"
    tails = {
        "zip": _archive(),
        "html": html,
        "php": b"<?php system($_GET[0]); ?>",
        "pdf": b"%PDF-1.7\n",
        "zeros": bytes(4096),
        "another": valid["gif/P"],
    }
    bases = ("jpeg/progressive", "jpeg/L", "png/RGB", "webp/lossy", "gif/P", "bmp/RGB", "tiff/RGB")
    for base in bases:
        for name, tail in tails.items():
            yield f"polyglot/{base}+{name}", valid[base] + tail
            yield f"polyglot/{name}+{base}", tail + valid[base]
    yield "polyglot/jpeg-with-html", encode(sample_image(), "JPEG", comment=html)
    yield "polyglot/gif-with-html", encode(sample_image("P"), "GIF", comment=html)
    yield "polyglot/gif-as-script", b"GIF89a/*" + valid["gif/P"][8:] + b"*/=1;alert(1)"
    at = len(valid["png/RGB"]) - 12  # before IEND
    yield (
        "polyglot/png-with-zip-inside",
        valid["png/RGB"][:at] + png_chunk(b"zipF", _archive()) + valid["png/RGB"][at:],
    )


def _exif_block(tag: int, kind: int, count: int, value: int) -> bytes:
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", tag, kind, count, value)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


def _extreme_metadata() -> Iterator[NamedInput]:
    blocks = {
        "empty": b"Exif\0\0",
        "nonsense": b"Exif\0\0nonsense",
        "far-away": b"Exif\0\0II*\0\xff\xff\xff\xff",
        "cut-off": b"Exif\0\0MM\0*",
        "itself": b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8),
        "many": b"Exif\0\0II*\0" + struct.pack("<IH", 8, 0xFFFF) + bytes(12) * 4000,
    }
    for tag in (0x0112, 0x0131, 0x011A, 0x8769, 0x8825, 0xA005, 0x927C, 0xC4A5):
        for kind in (*range(14), 255):
            blocks[f"{tag:x}-{kind}"] = _exif_block(tag, kind, 1, 0xFFFFFFFF)
            blocks[f"{tag:x}-{kind}-endless"] = _exif_block(tag, kind, 0xFFFFFFFF, 8)
    for name, block in blocks.items():
        yield f"exif/jpeg-{name}", encode(sample_image(), "JPEG", exif=block)
        yield f"exif/png-{name}", encode(sample_image(), "PNG", exif=block[6:] or b"\0")
    for name in ("empty", "nonsense", "itself", "many"):
        yield f"exif/webp-{name}", encode(sample_image(), "WEBP", exif=blocks[name])
    for orientation in (-1, 0, 9, 255, 65535):
        yield f"exif/orientation-{orientation}", encode(sample_image(), "PNG", exif=exif(orientation % 65536))
    for place, part in enumerate((b"", b"\0" * 14, b"ICC_PROFILE\0\xff\x01", b"ICC_PROFILE\0\x01\x00")):
        segment = b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part
        for name in ("RGB", "CMYK"):
            plain = encode(sample_image(name), "JPEG")
            yield f"icc/{name}-{place}", plain[:2] + segment * 3 + plain[2:]
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta " + b"<a>" * 5000
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    plain = encode(sample_image(), "JPEG")
    yield "xmp/nested", plain[:2] + segment + plain[2:]
    yield "adobe/unknown-transform", plain[:2] + b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\x09" + plain[2:]


def _png_metadata() -> Iterator[NamedInput]:
    """Yield PNGs with each ancillary chunk: empty, short, long and with a wrong checksum."""
    kinds = (
        b"acTL bKGD cHRM cICP eXIf fcTL fdAT gAMA hIST iCCP iTXt pHYs sBIT sPLT sRGB tEXt tIME tRNS zTXt abCd"
    )
    bodies = {"empty": b"", "short": b"\0", "odd": bytes(range(7)), "long": b"k\0\0" + b"x" * 70_000}
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        image = encode(sample_image(mode), "PNG")
        at, end = 33, len(image) - 12  # after IHDR, before IEND
        for kind in kinds.split():
            for name, body in bodies.items():
                chunk = png_chunk(kind, body)
                label = f"metadata/{mode}-{kind.decode()}-{name}"
                yield label, image[:at] + chunk + image[at:]
                yield f"{label}-late", image[:end] + chunk + image[end:]
                yield f"{label}-checksum", image[:at] + chunk[:-4] + bytes(4) + image[at:]
    yield "metadata/apple", image[:8] + png_chunk(b"CgBI", bytes(4)) + image[8:]


def _truncated(name: str, data: bytes) -> Iterator[NamedInput]:
    for length in range(1, len(data), _CUT_INTERVAL):
        yield f"cut/{name}-{length}", data[:length]
    yield f"cut/{name}-last", data[:-1]
    for length in range(_CUT_INTERVAL, len(data), 8 * _CUT_INTERVAL):
        yield f"headless/{name}-{length}", data[length:]


def _damaged(name: str, data: bytes) -> Iterator[NamedInput]:
    """Flip bits, and replace, remove and repeat bytes; in half of the variants in the header only."""
    rng = random.Random(name)
    for variant in range(_VARIANTS):
        end = min(len(data), 64) if variant % 2 else len(data)
        flipped = bytearray(data)
        for _ in range(1 + variant):
            flipped[rng.randrange(end)] ^= 1 << rng.randrange(8)
        yield f"flipped/{name}-{variant}", bytes(flipped)
        replaced = bytearray(data)
        for _ in range(1 + variant // 4):
            replaced[rng.randrange(end)] = rng.choice(_EXTREME_BYTES)
        yield f"replaced/{name}-{variant}", bytes(replaced)
        start = rng.randrange(len(data))
        length = rng.randrange(1, 64)
        yield f"removed/{name}-{variant}", data[:start] + data[start + length :]
        yield f"repeated/{name}-{variant}", data[: start + length] + data[start:]


def _crossed(valid: list[NamedInput]) -> Iterator[NamedInput]:
    """Yield the start of one image followed by the rest of the next one."""
    for (name, data), (other, rest) in zip(valid, valid[1:] + valid[:1], strict=True):
        for at in (16, 64, len(data) // 2):
            yield f"crossed/{name}-{other}-{at}", data[:at] + rest[at:]
