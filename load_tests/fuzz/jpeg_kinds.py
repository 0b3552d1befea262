"""JPEG files of every kind of frame, with decoys, missing data and trailers. Source: ITU-T T.81, annex B."""

import struct
from collections.abc import Iterator
from itertools import product
from typing import Final

from load_tests.fuzz.sample_images import NamedInput, encode, sample_image

_FRAMES: Final = tuple(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
"""Markers of all frames: C4, C8 and CC are tables, an extension and conditioning."""
_PRECISIONS: Final = (2, 8, 10, 12, 16)
_FACTORS: Final = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 2), (4, 4), (3, 1), (0, 0))
_END: Final = b"\xff\xd9"
_SCAN: Final = b"\xff\xda"


def frame_of(data: bytes) -> tuple[int, int]:
    """Return where the segment of the frame starts, at its marker, and where it ends."""
    position = 2
    while data[position + 1] not in _FRAMES:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position, position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def with_frame(
    data: bytes,
    marker: int | None = None,
    precision: int | None = None,
    factors: tuple[tuple[int, int], ...] | None = None,
) -> bytes:
    """Return a JPEG whose frame has another marker, precision, or other sampling factors of its components.

    The pixels remain as they were encoded.
    """
    start, end = frame_of(data)
    old_precision, size = data[start + 4], data[start + 5 : start + 9]
    old = [data[i : i + 3] for i in range(start + 10, end, 3)]
    new = [
        bytes((i + 1, 16 * h + v, old[min(i, len(old) - 1)][2])) for i, (h, v) in enumerate(factors or ())
    ] or old
    body = bytes((precision or old_precision,)) + size + bytes((len(new),)) + b"".join(new)
    segment = bytes((0xFF, marker or data[start + 1])) + struct.pack(">H", 2 + len(body)) + body
    return data[:start] + segment + data[end:]


def jpeg_kinds() -> Iterator[NamedInput]:
    """Yield every combination of frame, precision, number of components and sampling, and more."""
    bases = {
        mode: encode(sample_image(mode), "JPEG", **options)
        for mode, options in {"L": {}, "RGB": {"subsampling": 0}, "CMYK": {}}.items()
    }
    for mode, marker, precision in product(bases, _FRAMES, _PRECISIONS):
        yield f"frame/{mode}-{marker:x}-{precision}", with_frame(bases[mode], marker, precision)
    for mode, factors, count in product(bases, _FACTORS, (1, 2, 3, 4, 5)):
        sampling = (factors, *(((1, 1),) * (count - 1)))
        name = f"{mode}-{count}-{factors[0]}x{factors[1]}"
        yield f"sampling/{name}", with_frame(bases[mode], factors=sampling)
        yield f"sampling/{name}-lossless", with_frame(bases[mode], 0xC3, factors=sampling)
        yield f"sampling/{name}-reversed", with_frame(bases[mode], factors=sampling[::-1])
    for mode, base in bases.items():
        yield from _decoys(mode, base)
        yield from _ends(mode, base)


def _decoys(mode: str, data: bytes) -> Iterator[NamedInput]:
    """Yield files with a second frame, also behind markers without a length."""
    start, end = frame_of(data)
    frame, lossless = data[start:end], with_frame(data, 0xC3)[start:end]
    for name, decoy in {"same": frame, "lossless": lossless}.items():
        yield f"decoy/{mode}-{name}-before", data[:start] + decoy + data[start:]
        yield f"decoy/{mode}-{name}-after", data[:end] + decoy + data[end:]
        for marker in (b"\xff", b"\xff\x01", *(bytes((0xFF, 0xD0 + i)) for i in range(8)), b"\xff\xd8"):
            yield f"decoy/{mode}-{name}-{marker.hex()}", data[:2] + marker + decoy + data[2:]


def _ends(mode: str, data: bytes) -> Iterator[NamedInput]:
    """Yield files that end too early, with and without an end marker, and files with a trailer."""
    for part in (0.3, 0.5, 0.9):
        cut = data[: int(part * len(data))]
        yield f"end/{mode}-cut-{part}", cut
        yield f"end/{mode}-cut-{part}-with-marker", cut + _END
    yield f"end/{mode}-no-marker", data[:-2]
    progressive = encode(sample_image(mode), "JPEG", progressive=True)
    yield f"end/{mode}-motion", progressive + 200 * (b"\0\0\0\x18ftypmp42" + _SCAN)
    scan = progressive[progressive.rindex(_SCAN) : -2]
    yield f"end/{mode}-many-scans", progressive[:-2] + 200 * scan + _END
    yield f"end/{mode}-extra-bytes", data[:2] + b"\0\0\0" + data[2:]
