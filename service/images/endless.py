"""Headers with more parts than any program writes: Pillow reads them one by one in Python.

20 MB of them would keep a decoding thread busy for up to a minute, or take a hundred times their size.
"""

import struct
from typing import Final

_JPEG: Final = b"\xff\xd8"
_SCAN: Final = 0xDA
_BARE: Final = (0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE))
"""Markers after which Pillow expects no length."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_CHUNK: Final = 12
"""Bytes of a chunk besides its data: their number, the name before them, the checksum after them."""

_GIF: Final = (b"GIF87a", b"GIF89a")
_EXTENSION: Final = 0x21
_IMAGE: Final = (0x2C, 0x3B)
"""The start of an image, and the end of all."""

_SMALL, _BIG = ("I", 4, "H", "HHI4x"), ("Q", 8, "Q", "HHQ8x")
_LAYOUT: Final = {
    b"II*\0": ("<", *_SMALL),
    b"MM\0*": (">", *_SMALL),
    b"II+\0": ("<", *_BIG),
    b"MM\0+": (">", *_BIG),
}
"""A TIFF's first bytes -> its byte order, the type and place of its directory's address, the type of how many
tags there are, and that of a tag: which, its type, how many values."""
_TEXT: Final = (1, 2, 7)
"""Types whose values are bytes, which stay together: a profile, a preview, a comment."""
_A_SAMPLE: Final = (258, 339)
"""Tags with a value for each channel, of whatever type."""

_EXIF: Final = b"Exif\0"
_MAX_EXIF: Final = 16  # it should be one, and some cameras write a few

_MAX_SEGMENTS: Final = 2_000  # a profile is at most 255, and 20 MB of EXIF and XMP about 300
_MAX_PADDING: Final = 50_000
_MAX_CHUNKS: Final = 50_000  # 20 MB in chunks of 400 bytes; most programs write 8 KB or more
_MAX_PROFILES: Final = 4  # there should be one; each is expanded, to a thousand times its size if need be
_MAX_BLOCKS: Final = 20_000  # 5 MB of comments
_MAX_TAGS: Final = 5_000
_MAX_VALUES: Final = 300_000  # begin and length of 100,000 strips, and a large palette


def is_endless(data: bytes | bytearray) -> bool:
    """Tell whether a JPEG, PNG, GIF or TIFF has such a header; False for all else."""
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_GIF):
        return _gif(data)
    return data.startswith(tuple(_LAYOUT)) and _tiff(data)


def _jpeg(data: bytes | bytearray) -> bool:
    """Look at the segments before the first scan, and at what is between them."""
    position = len(_JPEG)
    segments = padding = exif = 0
    while segments <= _MAX_SEGMENTS and padding <= _MAX_PADDING and exif <= _MAX_EXIF:
        found = data.find(b"\xff", position)
        padding += (len(data) if found < 0 else found) - position
        if found < 0 or found + 4 > len(data) or data[found + 1] == _SCAN:
            return padding > _MAX_PADDING
        marker = data[found + 1]
        if marker == 0xFF:
            padding += 1
            position = found + 1
        elif marker in _BARE:
            padding += 2
            position = found + 2
        else:
            segments += 1
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
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    inside = False
    for _ in range(_MAX_BLOCKS):
        if position >= len(data) or (not inside and data[position] in _IMAGE):
            return False
        byte = data[position]  # how many follow it, inside of an extension
        if inside:
            inside = byte > 0
            position += 1 + byte
        elif byte == _EXTENSION:
            inside = True
            position += 2
        else:
            position += 1
    return True


def _tiff(data: bytes | bytearray) -> bool:
    """Look at the tags of the first picture: each number of theirs becomes an object."""
    order, at, where, number, entry = _LAYOUT[bytes(data[:4])]
    try:
        [begin] = struct.unpack_from(order + at, data, where)
        [tags] = struct.unpack_from(order + number, data, begin)
    except (struct.error, OverflowError):
        return False  # cut off, and refused for that
    if tags > _MAX_TAGS:
        return True
    values = 0
    begin += struct.calcsize(order + number)
    size = struct.calcsize(order + entry)
    for position in range(begin, min(begin + tags * size, len(data) - size + 1), size):
        tag, kind, count = struct.unpack_from(order + entry, data, position)
        values += count if kind not in _TEXT or tag in _A_SAMPLE else 0
    return values > _MAX_VALUES
