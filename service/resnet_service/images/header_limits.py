"""Headers with more parts than any program writes: Pillow reads them one by one in Python.

20 MB of them would keep a decoding thread busy for up to a minute, or take a hundred times their size.
"""

import struct
from typing import Final

_JPEG: Final = b"\xff\xd8"
_SCAN: Final = 0xDA
_STANDALONE_MARKERS: Final = (0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE))
"""Markers after which Pillow expects no length."""
_FRAMES: Final = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
"""Size and components: there is one."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_CHUNK: Final = 12
"""Bytes of a chunk besides its data: their number, the name before them, the checksum after them."""

_GIF: Final = (b"GIF87a", b"GIF89a")
_EXTENSION: Final = 0x21
_IMAGE: Final = 0x2C
_END: Final = 0x3B

_RIFF: Final = b"RIFF"

_SMALL, _BIG = ("I", 4, "H", "HHI4x"), ("Q", 8, "Q", "HHQ8x")
_TIFF_LAYOUTS: Final = {
    b"II*\0": ("<", *_SMALL),
    b"II\0*": ("<", *_SMALL),
    b"MM\0*": (">", *_SMALL),
    b"MM*\0": (">", *_SMALL),
    b"MM\0+": (">", *_SMALL),  # should be as the next one, but Pillow does not read it so
    b"II+\0": ("<", *_BIG),
}
"""A TIFF's first bytes -> its byte order, the type and place of its directory's address, the type of how many
tags there are, and that of a tag: which, its type, how many values."""
_BYTE_TYPES: Final = (1, 2, 7)
"""Types whose values are bytes, and stay together where nobody asks for them one by one."""
_LARGE_TAGS: Final = (
    *(269, 270, 271, 272, 285, 305, 306, 315, 316, 337, 347),  # comments, names, tables
    *range(700, 2**16),  # profiles, previews, what programs remember
)
"""Tags that may have so many bytes."""

_EXIF: Final = b"Exif\0"
_MAX_EXIF: Final = 16  # it should be one, and some cameras write a few

_MAX_SEGMENTS: Final = 2_000  # a profile is at most 255, and 20 MB of EXIF and XMP about 300
_MAX_PADDING: Final = 50_000
_MAX_CHUNKS: Final = 50_000  # 20 MB in chunks of 400 bytes; most programs write 8 KB or more
_MAX_PROFILES: Final = 4  # there should be one; each is expanded, to a thousand times its size if need be
_MAX_BLOCKS: Final = 20_000  # 5 MB of comments
_MAX_TAGS: Final = 5_000
_MAX_VALUES: Final = 300_000  # begin and length of 100,000 strips, and a large palette


def has_excessive_header(data: bytes | bytearray) -> bool:
    """Tell whether a JPEG, PNG, GIF, WebP or TIFF has such a header; False for all else."""
    return any(data.startswith(begin) and check(data) for begin, check in _FORMATS)


def gif_frame(data: bytes | bytearray) -> tuple[int, int] | None:
    """Return (width, height) from the corner of the screen to that of the first image; None for no GIF.

    Pillow fills a frame while it reads the header.
    """
    position = _gif_image(data) if data.startswith(_GIF) else None
    if position is None or position + 9 > len(data):
        return None
    left, top, width, height = struct.unpack_from("<4H", data, position + 1)
    return left + width, top + height


def _jpeg(data: bytes | bytearray) -> bool:
    """Look at the segments before the first scan, and at what is between them."""
    position = len(_JPEG)
    segments = padding = exif = frames = 0
    while segments <= _MAX_SEGMENTS and padding <= _MAX_PADDING and exif <= _MAX_EXIF and frames <= 1:
        found = data.find(b"\xff", position)
        padding += (len(data) if found < 0 else found) - position
        if found < 0 or found + 4 > len(data) or data[found + 1] == _SCAN:
            return padding > _MAX_PADDING
        marker = data[found + 1]
        if marker == 0xFF:
            padding += 1
            position = found + 1
        elif marker in _STANDALONE_MARKERS:
            padding += 2
            position = found + 2
        else:
            segments += 1
            frames += marker in _FRAMES
            exif += data[found + 4 : found + 9] == _EXIF  # all of them are read as one
            position = found + 2 + max(2, int.from_bytes(data[found + 2 : found + 4], "big"))
    return True


def _png(data: bytes | bytearray) -> bool:
    """Look at all chunks, because those after the pixels are read as well."""
    position = len(_PNG)
    chunks = profiles = 0
    while position + _CHUNK <= len(data):
        chunks += 1
        profiles += data[position + 4 : position + 8] == b"iCCP"
        if chunks > _MAX_CHUNKS or profiles > _MAX_PROFILES:
            return True
        position += _CHUNK + int.from_bytes(data[position : position + 4], "big")
    return False


def _gif(data: bytes | bytearray) -> bool:
    """Look at the blocks before the first image; bytes between them count as blocks."""
    return _gif_image(data) is None


def _gif_image(data: bytes | bytearray) -> int | None:
    """Return where the first image, or the end, is; None where too many blocks come before."""
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    inside = False
    for _ in range(_MAX_BLOCKS):
        if position >= len(data) or (not inside and data[position] in (_IMAGE, _END)):
            return position
        byte = data[position]  # how many follow it, inside of an extension
        if inside:
            inside = byte > 0
            position += 1 + byte
        elif byte == _EXTENSION:
            inside = True
            position += 2
        else:
            position += 1
    return None


def _webp(data: bytes | bytearray) -> bool:
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return False
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
    return True


def _tiff(data: bytes | bytearray) -> bool:
    """Look at the tags of the first image: each number of theirs becomes an object."""
    order, at, where, number, entry = _TIFF_LAYOUTS[bytes(data[:4])]
    try:
        [begin] = struct.unpack_from(order + at, data, where)
        [tags] = struct.unpack_from(order + number, data, begin)
    except (struct.error, OverflowError):
        return False  # cut off, and rejected for that
    if tags > _MAX_TAGS:
        return True
    values = 0
    begin += struct.calcsize(order + number)
    size = struct.calcsize(order + entry)
    for position in range(begin, min(begin + tags * size, len(data) - size + 1), size):
        tag, kind, count = struct.unpack_from(order + entry, data, position)
        values += 0 if kind in _BYTE_TYPES and tag in _LARGE_TAGS else count
    return values > _MAX_VALUES


_FORMATS: Final = (
    (_JPEG, _jpeg),
    (_PNG, _png),
    (_GIF, _gif),
    (_RIFF, _webp),
    (tuple(_TIFF_LAYOUTS), _tiff),
)
