"""Headers with more parts than any program writes: Pillow reads them one by one in Python.

20 MB of them would keep a decoding thread busy for up to a minute, or take a hundred times their size.
"""

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

_MAX_SEGMENTS: Final = 2_000  # a profile is at most 255, and 20 MB of EXIF and XMP about 300
_MAX_PADDING: Final = 50_000
_MAX_CHUNKS: Final = 50_000  # 20 MB in chunks of 400 bytes; most programs write 8 KB or more
_MAX_PROFILES: Final = 4  # there should be one; each is expanded, to a thousand times its size if need be
_MAX_BLOCKS: Final = 20_000  # 5 MB of comments


def is_endless(data: bytes | bytearray) -> bool:
    """Tell whether a JPEG, PNG or GIF has such a header; False for all else."""
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data.startswith(_PNG):
        return _png(data)
    return data.startswith(_GIF) and _gif(data)


def _jpeg(data: bytes | bytearray) -> bool:
    """Look at the segments before the first scan, and at what is between them."""
    position = len(_JPEG)
    segments = padding = 0
    while segments <= _MAX_SEGMENTS and padding <= _MAX_PADDING:
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
