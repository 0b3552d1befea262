"""The header of a JPEG file: whether it is plain, and otherwise its kind. Source: ITU-T T.81, annex B.

Plain means 8-bit samples, Huffman coding (sequential or progressive), one or three components with usual
sampling factors, and at most one EXIF segment.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from resnet_service.images.orientation import read_orientation

JPEG_SIGNATURE: Final = b"\xff\xd8"

_PLAIN_FRAMES: Final = (0xC0, 0xC1, 0xC2)
"""Markers of baseline, extended sequential and progressive frames with Huffman coding."""
_PROGRESSIVE: Final = 0xC2
_FRAMES: Final = {
    **dict.fromkeys((*_PLAIN_FRAMES, 0xC9, 0xCA), ""),
    0xC3: "lossless ",
    0xCB: "arithmetic-coded lossless ",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical "),
    0xF7: "LS ",
}
"""Markers of all frames -> how the kind is called, if it is neither sequential nor progressive."""
_DECODABLE_FRAMES: Final = (*_PLAIN_FRAMES, 0xC3, 0xC9, 0xCA)
"""Those that libjpeg-turbo decodes, with 8-bit samples."""
_START_OF_SCAN: Final = 0xDA
_END_OF_IMAGE: Final = 0xD9
END_OF_IMAGE: Final = b"\xff\xd9"
_SEGMENTS: Final = frozenset((*_PLAIN_FRAMES, 0xC4, 0xDB, 0xDD, _START_OF_SCAN, *range(0xE0, 0xF0), 0xFE))
"""Markers of the segments before the pixels of a plain JPEG: frame, tables, scan, applications', comment.

No others are skipped: some have no length, so that this reader could find another frame than the decoder.
"""
_APP1: Final = 0xE1
_SAMPLINGS: Final = frozenset(bytes((luma, 0x11, 0x11)) for luma in (0x11, 0x21, 0x22, 0x12, 0x41))
"""Sampling factors of the components: 4:4:4, 4:2:2, 4:2:0, 4:4:0 and 4:1:1."""
_MAX_SEGMENTS: Final = 1_000
_MAX_SCANS: Final = 100
"""A progressive JPEG has about 10; each costs a pass over all pixels."""
_EXIF: Final = b"Exif\0\0"
_MARKER: Final = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
"""A marker between or after compressed data, in which FF is followed by 00 or by a restart marker."""


class Header(NamedTuple):
    """Width and height of the stored pixels, and their EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int


class _Segment(NamedTuple):
    marker: int
    start: int
    end: int


class _Frame(NamedTuple):
    precision: int
    height: int
    width: int
    samplings: bytes


def read_header(data: bytes | bytearray) -> Header | None:
    """Return the header of a plain JPEG; None for other data. It takes 7 µs for a photograph."""
    if not data.startswith(JPEG_SIGNATURE):
        return None
    frame: _Frame | None = None
    is_progressive = False
    exif: bytes | None = None
    for marker, start, end in _segments(data):
        if marker not in _SEGMENTS:
            break
        if marker in _PLAIN_FRAMES:
            if frame is not None or (frame := _read_frame(data[start:end])) is None or not _is_plain(frame):
                break
            is_progressive = marker == _PROGRESSIVE
        elif marker == _APP1 and data.startswith(_EXIF, start):
            if exif is not None:
                break  # Pillow joins several segments
            exif = bytes(data[start:end])
        elif marker == _START_OF_SCAN:
            if frame is None or end == start:
                break
            has_more_scans = is_progressive or data[start] != len(frame.samplings)
            if has_more_scans and _has_too_many_scans(data, end):
                break
            return Header(frame.width, frame.height, read_orientation(exif))
    return None


def unsupported_kind(data: bytes | bytearray) -> str | None:
    """Return the name of the kind of a JPEG that libjpeg-turbo cannot decode to 8-bit samples.

    None if it can, or if the header is damaged.
    """
    for marker, start, end in _segments(data):
        if marker in _FRAMES:
            frame = _read_frame(data[start:end])
            if frame is None:
                return None
            is_decodable = marker in _DECODABLE_FRAMES and frame.precision == 8
            bits = "" if frame.precision == 8 else f"{frame.precision}-bit "
            if not is_decodable:
                return f"{bits}{_FRAMES[marker]}JPEG".replace("LS JPEG", "JPEG-LS")
            if not frame.height:
                return "JPEG without a height in its header"
            count = len(frame.samplings)
            return None if count in (1, 3, 4) else f"JPEG with {count} components"
    return None


def _segments(data: bytes | bytearray, position: int = len(JPEG_SIGNATURE)) -> Iterator[_Segment]:
    """Yield the segments up to the first that is not one: a marker without a length, or other data."""
    for _ in range(_MAX_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            return
        marker, length = struct.unpack_from(">BH", data, position + 1)
        segment = _Segment(marker, position + 4, position + 2 + length)
        if not segment.start <= segment.end <= len(data):
            return
        yield segment
        position = segment.end


def _read_frame(segment: bytes | bytearray) -> _Frame | None:
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        return None
    precision, height, width = struct.unpack_from(">BHH", segment)
    return _Frame(precision, height, width, bytes(segment[7::3])) if width else None


def _is_plain(frame: _Frame) -> bool:
    has_usual_sampling = len(frame.samplings) == 1 or frame.samplings in _SAMPLINGS
    return frame.precision == 8 and frame.height > 0 and has_usual_sampling


def _has_too_many_scans(data: bytes | bytearray, position: int) -> bool:
    """Whether more than `_MAX_SCANS` scans follow the header of the first, which ends at `position`.

    Markers are counted first, which takes 0.1 ms per 100 KB. They may belong to what follows the image, such
    as the video of a motion photo.
    """
    if data.count(b"\xff\xda", position) < _MAX_SCANS:
        return False
    scans = 1
    while (marker := _MARKER.search(data, position)) and marker[1][0] != _END_OF_IMAGE:
        segment = next(_segments(data, marker.start()), None)
        if segment is None:
            break
        scans += segment.marker == _START_OF_SCAN
        if scans > _MAX_SCANS:
            return True
        position = segment.end
    return False
