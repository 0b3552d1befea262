"""Check image headers without a decoder: limits on their size, and the dimensions of common files.

Pillow reads a header part by part in Python. A 20 MB file that consists of small parts would occupy a
decoding thread for up to a minute, or take a hundred times its size in memory.
"""

import struct
from typing import Final

_JPEG_SIGNATURE: Final = b"\xff\xd8"
_SOS: Final = 0xDA
"""JPEG marker: start of scan."""
_STANDALONE_MARKERS: Final = (0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE))
"""JPEG markers after which Pillow reads no length."""
_SOF_MARKERS: Final = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
"""JPEG markers: start of frame, with dimensions and components. A file has one."""
_SEQUENTIAL_SOF: Final = (0xC0, 0xC1)
_SKIPPED_MARKERS: Final = (
    0xC4,  # Huffman tables
    0xDB,  # quantization tables
    0xDD,  # restart interval
    0xE0,  # JFIF
    *range(0xE2, 0xF0),  # application data, except EXIF and XMP, which can contain an orientation
    0xFE,  # comment
)
"""JPEG markers that `baseline_jpeg_size` skips."""
_EXIF: Final = b"Exif\0"

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_CHUNK_OVERHEAD: Final = 12
"""Bytes of a PNG chunk besides its data: length (4), name (4), checksum (4)."""

_GIF_SIGNATURES: Final = (b"GIF87a", b"GIF89a")
_GIF_EXTENSION: Final = 0x21
_GIF_IMAGE: Final = 0x2C
_GIF_TRAILER: Final = 0x3B

_RIFF_SIGNATURE: Final = b"RIFF"

_CLASSIC, _BIGTIFF = ("I", 4, "H", "HHI4x"), ("Q", 8, "Q", "HHQ8x")
_TIFF_LAYOUTS: Final = {
    b"II*\0": ("<", *_CLASSIC),
    b"II\0*": ("<", *_CLASSIC),
    b"MM\0*": (">", *_CLASSIC),
    b"MM*\0": (">", *_CLASSIC),
    b"MM\0+": (">", *_CLASSIC),  # BigTIFF by the specification, but Pillow reads it as classic TIFF
    b"II+\0": ("<", *_BIGTIFF),
}
"""TIFF signature -> byte order, format and position of the offset of the first directory, format of the
number of tags, format of a tag (its number, the type of its values, the number of its values)."""
_BYTE_TYPES: Final = (1, 2, 7)
"""TIFF types whose values are bytes. Pillow keeps them as one bytes object unless they are read one by
one."""
_LARGE_TAGS: Final = (
    *(269, 270, 271, 272, 285, 305, 306, 315, 316, 337, 347),  # comments, names, tables
    *range(700, 2**16),  # profiles, previews, application data
)
"""TIFF tags that may have many bytes."""

_MAX_SEGMENTS: Final = 2_000  # a color profile has at most 255, and 20 MB of EXIF and XMP have about 300
_MAX_PADDING_BYTES: Final = 50_000
_MAX_EXIF_SEGMENTS: Final = 16  # the standard allows one; some cameras write a few
_MAX_CHUNKS: Final = 50_000  # 20 MB in chunks of 400 bytes; most programs write chunks of 8 KB or more
_MAX_PROFILES: Final = 4  # the standard allows one; each can expand to a thousand times its size
_MAX_BLOCKS: Final = 20_000  # 5 MB of comments
_MAX_TAGS: Final = 5_000
_MAX_TAG_VALUES: Final = 300_000  # offsets and lengths of 100,000 strips, and a large palette


def has_excessive_header(data: bytes | bytearray) -> bool:
    """Return whether a JPEG, PNG, GIF, WebP or TIFF header exceeds the limits; False for other data."""
    return any(data.startswith(signature) and exceeds(data) for signature, exceeds in _CHECKS)


def baseline_jpeg_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Return (width, height) of a sequential gray or color JPEG with one scan and no EXIF, otherwise None.

    Pillow's reading of the header takes a tenth of the time of decoding; this takes less. If the first scan
    of a sequential JPEG has all components, decoders ignore later scans, so the dimensions determine the
    cost. Source: ITU-T T.81, annex B.
    """
    if not data.startswith(_JPEG_SIGNATURE):
        return None
    position = len(_JPEG_SIGNATURE)
    size, components = None, 0
    for _ in range(_MAX_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            return None
        marker = data[position + 1]
        body = position + 4
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if position > len(data) or position < body:
            return None
        if marker in _SEQUENTIAL_SOF and size is None and position - body >= 6 and data[body] == 8:
            height, width, components = struct.unpack_from(">HHB", data, body + 1)
            size = width, height
        elif marker == _SOS:
            has_all_components = components in (1, 3) and position > body and data[body] == components
            return size if has_all_components and size is not None and all(size) else None
        elif marker not in _SKIPPED_MARKERS:
            return None
    return None


def gif_frame_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Return (width, height) from a GIF's origin to the far corner of its first frame, otherwise None.

    Pillow allocates and fills the frame while it reads the header.
    """
    position = _gif_first_image(data) if data.startswith(_GIF_SIGNATURES) else None
    if position is None or position + 9 > len(data):
        return None
    left, top, width, height = struct.unpack_from("<4H", data, position + 1)
    return left + width, top + height


def _jpeg_exceeds(data: bytes | bytearray) -> bool:
    """Count the segments before the first scan, and the bytes between them."""
    position = len(_JPEG_SIGNATURE)
    segments = padding = exif = frames = 0
    while (
        segments <= _MAX_SEGMENTS
        and padding <= _MAX_PADDING_BYTES
        and exif <= _MAX_EXIF_SEGMENTS
        and frames <= 1
    ):
        start = data.find(b"\xff", position)
        padding += (len(data) if start < 0 else start) - position
        if start < 0 or start + 4 > len(data) or data[start + 1] == _SOS:
            return padding > _MAX_PADDING_BYTES
        marker = data[start + 1]
        if marker == 0xFF:
            padding += 1
            position = start + 1
        elif marker in _STANDALONE_MARKERS:
            padding += 2
            position = start + 2
        else:
            segments += 1
            frames += marker in _SOF_MARKERS
            exif += data[start + 4 : start + 9] == _EXIF  # Pillow joins all EXIF segments
            position = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
    return True


def _png_exceeds(data: bytes | bytearray) -> bool:
    """Count all chunks: Pillow also reads those after the pixels."""
    position = len(_PNG_SIGNATURE)
    chunks = profiles = 0
    while position + _CHUNK_OVERHEAD <= len(data):
        chunks += 1
        profiles += data[position + 4 : position + 8] == b"iCCP"
        if chunks > _MAX_CHUNKS or profiles > _MAX_PROFILES:
            return True
        position += _CHUNK_OVERHEAD + int.from_bytes(data[position : position + 4], "big")
    return False


def _gif_exceeds(data: bytes | bytearray) -> bool:
    return _gif_first_image(data) is None


def _gif_first_image(data: bytes | bytearray) -> int | None:
    """Return the position of the first image, or of the end; None if more than `_MAX_BLOCKS` precede it.

    A stray byte between blocks counts as a block.
    """
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    in_extension = False
    for _ in range(_MAX_BLOCKS):
        if position >= len(data) or (not in_extension and data[position] in (_GIF_IMAGE, _GIF_TRAILER)):
            return position
        byte = data[position]  # inside an extension: the length of the next block
        if in_extension:
            in_extension = byte > 0
            position += 1 + byte
        elif byte == _GIF_EXTENSION:
            in_extension = True
            position += 2
        else:
            position += 1
    return None


def _webp_exceeds(data: bytes | bytearray) -> bool:
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return False
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
    return True


def _tiff_exceeds(data: bytes | bytearray) -> bool:
    """Count the values of the first directory's tags: Pillow makes an object of each number."""
    order, offset_format, offset_position, count_format, tag_format = _TIFF_LAYOUTS[bytes(data[:4])]
    try:
        [start] = struct.unpack_from(order + offset_format, data, offset_position)
        [tags] = struct.unpack_from(order + count_format, data, start)
    except (struct.error, OverflowError):
        return False  # truncated; the decoder rejects it
    if tags > _MAX_TAGS:
        return True
    values = 0
    start += struct.calcsize(order + count_format)
    size = struct.calcsize(order + tag_format)
    for position in range(start, min(start + tags * size, len(data) - size + 1), size):
        tag, value_type, count = struct.unpack_from(order + tag_format, data, position)
        values += 0 if value_type in _BYTE_TYPES and tag in _LARGE_TAGS else count
    return values > _MAX_TAG_VALUES


_CHECKS: Final = (
    (_JPEG_SIGNATURE, _jpeg_exceeds),
    (_PNG_SIGNATURE, _png_exceeds),
    (_GIF_SIGNATURES, _gif_exceeds),
    (_RIFF_SIGNATURE, _webp_exceeds),
    (tuple(_TIFF_LAYOUTS), _tiff_exceeds),
)
