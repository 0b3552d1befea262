"""TIFF files of every kind, written from their specification. Sources: TIFF 6.0, and the BigTIFF design."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from load_tests.fuzz.sample_images import NamedInput, sample_image

_SHORT: Final = 3
_LONG: Final = 4
_DEFLATE: Final = 8
_BITS: Final = (1, 2, 4, 8, 10, 12, 14, 16, 24, 32)


def write_tiff(
    samples: npt.NDArray[np.uint64],
    bits: int,
    photometric: int,
    *,
    big_endian: bool = False,
    big_tiff: bool = False,
    separate: bool = False,
    reverse_bits: bool = False,
    sample_format: int = 1,
    compression: int = 1,
    extra: Sequence[int] = (),
    colors: Sequence[int] = (),
) -> bytes:
    """Return a TIFF with one strip per plane of these samples, [H, W, C], each below 2 ** `bits`.

    With a `compression` other than none and deflate, the strips are not what they are declared to be.
    """
    height, width, channels = samples.shape
    order = ">" if big_endian else "<"
    planes = [samples[..., i : i + 1] for i in range(channels)] if separate else [samples]
    strips = [_pack(plane, bits, big_endian=big_endian) for plane in planes]
    if compression == _DEFLATE:
        strips = [zlib.compress(strip) for strip in strips]
    if reverse_bits:
        strips = [_reverse_bits(strip) for strip in strips]
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (_SHORT, [width]),
        257: (_SHORT, [height]),
        258: (_SHORT, [bits] * channels),
        259: (_SHORT, [compression]),
        262: (_SHORT, [photometric]),
        266: (_SHORT, [2 if reverse_bits else 1]),
        273: (_LONG, [0] * len(strips)),
        277: (_SHORT, [channels]),
        278: (_SHORT, [height]),
        279: (_LONG, [len(strip) for strip in strips]),
        284: (_SHORT, [2 if separate else 1]),
        339: (_SHORT, [sample_format] * channels),
    }
    if extra:
        tags[338] = (_SHORT, extra)
    if colors:
        tags[320] = (_SHORT, colors)
    magic = struct.pack(order + "HHH", 43, 8, 0) if big_tiff else struct.pack(order + "H", 42)
    head = (b"MM" if big_endian else b"II") + magic
    start = len(head) + (8 if big_tiff else 4)
    starts = np.cumsum([start, *(len(strip) for strip in strips)]).tolist()
    tags[273] = (_LONG, starts[:-1])
    directory = _directory(tags, order, starts[-1], big_tiff=big_tiff)
    return head + struct.pack(order + ("Q" if big_tiff else "I"), starts[-1]) + b"".join(strips) + directory


def _reverse_bits(data: bytes) -> bytes:
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little").tobytes()


def _pack(samples: npt.NDArray[np.uint64], bits: int, *, big_endian: bool) -> bytes:
    """Return rows of samples; those of 16, 24 and 32 bits have the byte order of the file."""
    if bits in (16, 24, 32) and not big_endian:
        size = bits // 8
        raw = samples.astype("<u4").tobytes()
        return np.frombuffer(raw, np.uint8).reshape(-1, 4)[:, :size].tobytes()
    rows = samples.reshape(samples.shape[0], -1)
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    return np.packbits((rows[..., None] >> shifts & 1).reshape(len(rows), -1).astype(np.uint8), 1).tobytes()


def _directory(
    tags: dict[int, tuple[int, Sequence[int]]], order: str, position: int, *, big_tiff: bool
) -> bytes:
    count, entry, word, inline = ("Q", "HHQ", "Q", 8) if big_tiff else ("H", "HHI", "I", 4)
    formats = {_SHORT: "H", _LONG: "I"}
    entry_bytes = struct.calcsize(order + entry) + inline
    values_at = position + struct.calcsize(order + count) + len(tags) * entry_bytes + inline
    entries = values = b""
    for tag, (kind, numbers) in sorted(tags.items()):
        value = struct.pack(order + formats[kind] * len(numbers), *numbers)
        entries += struct.pack(order + entry, tag, kind, len(numbers))
        if len(value) <= inline:
            entries += value.ljust(inline, b"\0")
        else:
            entries += struct.pack(order + word, values_at + len(values))
            values += value
    return struct.pack(order + count, len(tags)) + entries + bytes(inline) + values


def tiff_kinds() -> Iterator[NamedInput]:
    """Yield TIFFs with each combination of color space, depth, byte order and layout."""
    gray = np.asarray(sample_image("L")).astype(np.uint64)[..., None]
    orders = tuple(product((False, True), (False, True)))
    for photometric, bits, (big_endian, big_tiff) in product(range(11), _BITS, orders):
        channels = {0: 1, 1: 1, 3: 1, 4: 1, 5: 4}.get(photometric, 3)
        samples = np.repeat(gray * ((1 << bits) - 1) // 255, channels, 2)
        name = f"tiff-kind/{photometric}-{bits}-{'MM' if big_endian else 'II'}{'-big' if big_tiff else ''}"
        colors = [value * (256 if bits > 4 else 1) for value in range(1 << min(bits, 8))] * 3
        options: dict[str, Any] = {"big_endian": big_endian, "big_tiff": big_tiff}
        colors = colors if photometric == 3 else []
        yield name, write_tiff(samples, bits, photometric, colors=colors, **options)
        yield f"{name}-reversed", write_tiff(samples, bits, photometric, reverse_bits=True, **options)
        if big_endian or big_tiff:
            continue
        for sample_format in (2, 3, 4):
            yield (
                f"{name}-format-{sample_format}",
                write_tiff(samples, bits, photometric, sample_format=sample_format, **options),
            )
        for extra in (0, 1, 2):
            more = np.concatenate((samples, samples[..., :1]), 2)
            for separate in (False, True):
                yield (
                    f"{name}-extra-{extra}-{separate}",
                    write_tiff(more, bits, photometric, extra=[extra], separate=separate, **options),
                )
    for compression in (*range(2, 9), 32773, 32946, 34712, 34887, 34925, 50000, 50001, 50002, 65535):
        yield (
            f"tiff-kind/compression-{compression}",
            write_tiff(np.repeat(gray, 3, 2), 8, 2, compression=compression),
        )
