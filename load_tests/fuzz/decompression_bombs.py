"""Small files that need much memory or time to decode, through their size, compression or structure."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

from load_tests.fuzz.sample_images import NamedInput, encode, png, png_chunk, sample_image
from load_tests.images import draw

Tags = Mapping[int, tuple[int, int, int]]
"""The tags of a TIFF: (type, count, value) of each."""

_MEBI: Final = 2**20


def bombs() -> Iterator[NamedInput]:
    """Yield every decompression bomb."""
    yield from _pngs()
    yield from _jpegs()
    yield from _webps()
    yield from _gifs()
    yield from _bmps()
    yield from _tiffs()


@cache
def zeros(mebibytes: int) -> bytes:
    """Return zlib data that expands to this many mebibytes of zeros, a thousand times its size.

    One mebibyte is compressed and repeated.
    """
    compressor = zlib.compressobj(9, wbits=-15)
    block = compressor.compress(bytes(_MEBI)) + compressor.flush(zlib.Z_FULL_FLUSH)
    checksum = (mebibytes * _MEBI % 65521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + block * mebibytes + b"\x03\x00" + struct.pack(">I", checksum)


def tiff(tags: Tags, after: bytes = b"") -> bytes:
    """Return a TIFF with these tags, followed by `after`."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + after


def tiff_tags(width: int, height: int, stored: int, compression: int = 1, other: Tags | None = None) -> Tags:
    """Return the tags of a gray TIFF with one strip of `stored` bytes, and other tags.

    The strip follows the tags.
    """
    plain = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1, 278: height, 279: stored}
    tags = {tag: (4, 1, value) for tag, value in plain.items()} | dict(other or {})
    tags.setdefault(273, (4, 1, 8 + 2 + 12 * (len(tags) + 1) + 4))
    return tags


def tiff_values(tag: int, kind: int, values: bytes, count: int) -> bytes:
    """Return a gray TIFF of 48 x 48 pixels with one strip per row, and `count` values in a tag."""
    tags = tiff_tags(48, 48, 64, other={278: (4, 1, 1)})
    begin = 8 + 2 + 12 * (len(tags) + (tag not in tags)) + 4
    return tiff({**tags, tag: (kind, count, begin)}, values)


def tiff_directories(fractions: int) -> bytes:
    """Return a gray TIFF of 48 x 48 pixels with this many fractions in its EXIF and GPS directories."""
    strip = bytes(48 * 48)
    tags = tiff_tags(48, 48, len(strip))
    end = 8 + 2 + 12 * (len(tags) + 2) + 4
    at = end + len(strip) + 8 * fractions
    offsets = {273: (4, 1, end), 34665: (4, 1, at), 34853: (4, 1, at)}
    directory = struct.pack("<HHHII", 1, 65_000, 5, fractions, end + len(strip)) + bytes(4)
    return tiff({**tags, **offsets}, strip + struct.pack("<II", 6, 1) * fractions + directory)


def webp_in_a_corner(width: int, height: int) -> bytes:
    """Return an animated WebP of this size whose frames have 16 x 16 pixels."""
    frames = [draw(16, 16, seed) for seed in range(2)]
    animated = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return animated[:24] + size + animated[30:]


def _pngs() -> Iterator[NamedInput]:
    row = zlib.compress(bytes(19))
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (2**31, 1),
        (1, 2**32 - 1),
        (60_000, 60_000),
        (0, 0),
        (9, 0),
    ):
        yield f"bomb/png-{width}x{height}", png((width, height, 8, 0, 0, 0, 0), row)
    yield "bomb/png-pixels", png((30_000, 30_000, 8, 2, 0, 0, 0), zeros(200))
    yield "bomb/png-body", png((16, 16, 8, 0, 0, 0, 0), zeros(1000))
    yield "bomb/png-interlaced-body", png((16, 16, 8, 6, 0, 0, 1), zeros(1000))
    small = ((16, 16, 8, 0, 0, 0, 0), zlib.compress(bytes(16 * 17)))
    chunks = {
        "zTXt": png_chunk(b"zTXt", b"Comment\0\0" + zeros(1000)),
        "zTXt-many": png_chunk(b"zTXt", b"Comment\0\0" + zeros(1)) * 500,
        "iTXt": png_chunk(b"iTXt", b"Comment\0\1\0en\0x\0" + zeros(1000)),
        "iTXt-many": png_chunk(b"iTXt", b"Comment\0\1\0en\0x\0" + zeros(1)) * 500,
        "iCCP": png_chunk(b"iCCP", b"profile\0\0" + zeros(1000)),
        "iCCP-many": png_chunk(b"iCCP", b"profile\0\0" + zeros(1)) * 500,
        "tEXt-many": png_chunk(b"tEXt", b"k\0v") * 50_000,
        "acTL": png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        "empty-many": png_chunk(b"teSt", b"") * 100_000,
    }
    for name, chunk in chunks.items():
        yield f"bomb/png-{name}", png(*small, before=chunk)
        yield f"bomb/png-{name}-after", png(*small, after=chunk)
    huge_frame = struct.pack(">IIIIIHHBB", 0, 60_000, 60_000, 0, 0, 1, 1, 0, 0)
    animated = png_chunk(b"acTL", struct.pack(">II", 1, 0)) + png_chunk(b"fcTL", huge_frame)
    yield "bomb/png-frame", png(*small, before=animated)


def _jpegs() -> Iterator[NamedInput]:
    plain = encode(sample_image(), "JPEG")
    at = plain.index(b"\xff\xc0") + 5
    for height, width in ((65535, 65535), (0, 0), (0, 24), (18, 0), (1, 65535), (65535, 1)):
        size = struct.pack(">HH", height, width)
        yield f"bomb/jpeg-{width}x{height}", plain[:at] + size + plain[at + 4 :]
    progressive = encode(sample_image(), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield "bomb/jpeg-scans", progressive[:-2] + scan * 2000 + progressive[-2:]
    at = progressive.index(b"\xff\xc2") + 5
    yield "bomb/jpeg-progressive", progressive[:at] + b"\xff\xff\xff\xff" + progressive[at + 4 :]
    yield "bomb/jpeg-comments", plain[:2] + b"\xff\xfe\0\x02" * 100_000 + plain[2:]
    yield "bomb/jpeg-junk", plain[:2] + b"\xff\xfe\0\2" + bytes(500_000) + plain[2:]
    yield "bomb/jpeg-restarts", plain[:2] + b"\xff\xd0" * 200_000 + plain[2:]
    yield "bomb/jpeg-components", plain[:2] + (b"\xff\xc0\xff\xff\x08" + bytes(65_532)) * 20 + plain[2:]
    yield "bomb/jpeg-fill", plain[:2] + b"\xff" * 500_000 + plain[2:]
    yield (
        "bomb/jpeg-profile",
        plain[:2] + (b"\xff\xe2\xff\xffICC_PROFILE\0\1\1" + bytes(65519)) * 20 + plain[2:],
    )


def _webps() -> Iterator[NamedInput]:
    lossless = encode(sample_image(), "WEBP", lossless=True)
    at = lossless.index(b"VP8L") + 9
    size = int.from_bytes(lossless[at : at + 4], "little") | (1 << 28) - 1  # 16384 x 16384
    yield "bomb/webp-lossless", lossless[:at] + size.to_bytes(4, "little") + lossless[at + 4 :]
    for width, height in ((2**24, 2**7), (2**14, 2**14), (2**24, 2**24), (1, 2**24)):
        canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        for flags in (0, 2):
            body = b"WEBPVP8X" + struct.pack("<II", 10, flags) + canvas + lossless[12:]
            yield f"bomb/webp-{width}x{height}-{flags}", b"RIFF" + struct.pack("<I", len(body)) + body
    yield "bomb/webp-corner", webp_in_a_corner(7000, 7000)
    many = lossless[8:] + b"teSt\0\0\0\0" * 100_000
    yield "bomb/webp-chunks", b"RIFF" + struct.pack("<I", len(many)) + many


def _gifs() -> Iterator[NamedInput]:
    frame = encode(sample_image("P"), "GIF")
    huge = frame[:6] + b"\xff\xff\xff\xff" + frame[10:]
    yield "bomb/gif-screen", huge
    at = frame.index(b",", 13 + 3 * 2 ** ((frame[10] & 7) + 1))
    yield "bomb/gif-frame", frame[: at + 5] + b"\xff\xff\xff\xff" + frame[at + 9 :]
    for disposal in (2, 3):
        control = bytes([0x21, 0xF9, 4, disposal << 2 | 1, 0, 0, 0, 0])
        begin = frame[:at] + control + frame[at : at + 5]
        yield f"bomb/gif-disposal-{disposal}", begin + b"\xff\xff\xff\xff" + frame[at + 9 :]
    yield "bomb/gif-offset", frame[: at + 1] + b"\xff\xff\xff\xff" + frame[at + 5 :]
    yield "bomb/gif-comments", frame[:at] + (b"!\xfe\xff" + b"c" * 255 + b"\0") * 2000 + frame[at:]
    yield "bomb/gif-comments-many", frame[:at] + b"!\xfe\1c\0" * 200_000 + frame[at:]
    yield "bomb/gif-comment", frame[:at] + b"!\xfe" + (b"\xff" + b"c" * 255) * 8000 + b"\0" + frame[at:]
    yield "bomb/gif-extensions", frame[:at] + b"!\xf9\0" * 100_000 + frame[at:]
    yield "bomb/gif-nothing", frame[:at] + b"\0" * 500_000


def _bmps() -> Iterator[NamedInput]:
    plain = encode(sample_image(), "BMP")
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (-(2**31), 1),
        (1, -(2**31)),
        (0, 0),
        (2**30, -1),
        (-1, -1),
    ):
        yield f"bomb/bmp-{width}x{height}", plain[:18] + struct.pack("<ii", width, height) + plain[26:]
    for compression in range(1, 14):
        yield f"bomb/bmp-compression-{compression}", plain[:30] + struct.pack("<I", compression) + plain[34:]
    yield "bomb/bmp-colors", plain[:46] + b"\xff\xff\xff\xff" + plain[50:]
    yield "bomb/bmp-header", plain[:14] + b"\xff\xff\xff\x7f" + plain[18:]


def _tiffs() -> Iterator[NamedInput]:
    strip = bytes(64)
    for width, height in ((2**32 - 1, 2**32 - 1), (2**31, 1), (1, 2**31), (0, 0), (60_000, 60_000)):
        yield f"bomb/tiff-{width}x{height}", tiff(tiff_tags(width, height, 64), strip)
    body = zeros(1000)
    for compression in (8, 32946):
        tags = tiff_tags(16, 16, len(body), compression=compression)
        yield f"bomb/tiff-strip-{compression}", tiff(tags, body)
        tags = tiff_tags(20_000, 20_000, len(body), compression=compression)
        yield f"bomb/tiff-pixels-{compression}", tiff(tags, body)
    for compression in (2, 3, 4, 5, 6, 7, 32773, 34925, 50000, 50001, 65535):
        tags = tiff_tags(7000, 7000, 64, compression=compression)
        yield f"bomb/tiff-nothing-{compression}", tiff(tags, strip)
    for tag in (258, 273, 279, 320, 700, 34377, 34665, 34675):
        for kind in (1, 2, 4, 7, 12):
            tags = tiff_tags(8, 8, 64, other={tag: (kind, 0xFFFFFFFF, 8)})
            yield f"bomb/tiff-count-{tag}-{kind}", tiff(tags, strip)
    yield "bomb/tiff-samples", tiff(tiff_tags(8, 8, 64, other={277: (4, 1, 0xFFFF)}), strip)
    yield "bomb/tiff-bits", tiff(tiff_tags(8, 8, 64, other={258: (3, 1, 0xFFFF)}), strip)
    yield "bomb/tiff-rows", tiff(tiff_tags(8, 8, 64, other={278: (4, 1, 0)}), strip)
    yield "bomb/tiff-directories", tiff_directories(500_000)
    for tag in (258, 273, 320, 338, 339):
        yield f"bomb/tiff-values-{tag}", tiff_values(tag, 1, bytes(500_000), 500_000)
    plain = tiff(tiff_tags(8, 8, 64), strip)
    yield "bomb/tiff-itself-next", plain.replace(bytes(4) + strip, struct.pack("<I", 8) + strip)
    many = b"II*\0" + struct.pack("<IH", 8, 0xFFFF) + struct.pack("<HHII", 256, 4, 1, 8) * 0xFFFF
    yield "bomb/tiff-entries", many
    tile = {322: 45_008, 323: 45_008, 324: 8, 325: 8}
    tags = {
        tag: (4, 1, value)
        for tag, value in {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, **tile}.items()
    }
    yield "bomb/tiff-tile", tiff(tags)
