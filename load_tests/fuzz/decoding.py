"""An atheris target: python -m load_tests.fuzz.decoding SEEDS [libFuzzer's options].

In a process of its own, because libFuzzer ends it. What it held after the warm-up, and at its end, is
written to its standard error as "rss_mb WARM NOW" every so often.
"""

import struct
import sys
import zlib
from typing import Final

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["resnet_service.images", "PIL"]):
    from resnet_service.errors import InvalidImageError, PayloadTooLarge, UnsupportedMediaType
    from resnet_service.images import Preprocessing, decode_image

from load_tests.health_prober import resident_mb

_PREPROCESSING: Final = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_MAX_PIXELS: Final = 1_000_000
"""Less than the service's limit, so that a run is about parsing and not about waiting for pixels."""

_WARM: Final = 2_000
_EVERY: Final = 100


class Target:
    """Decodes what it is given; any error but the three that are promised leaves it."""

    def __init__(self) -> None:
        self._runs = 0
        self._warm_mb = 0.0

    def __call__(self, data: bytes) -> None:
        """Decode once."""
        self._runs += 1
        if self._runs % _EVERY == 0:
            now_mb = resident_mb()
            if self._runs <= _WARM:
                self._warm_mb = now_mb
            sys.stderr.write(f"rss_mb {self._warm_mb:.1f} {now_mb:.1f}\n")
        try:
            crop = decode_image(data, _PREPROCESSING, _MAX_PIXELS)
        except (InvalidImageError, PayloadTooLarge, UnsupportedMediaType):
            return
        assert crop.shape == (32, 32, 3)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change the bytes as libFuzzer does, and then put a PNG's checksums right, mostly.

    Pillow would look at hardly any other PNG.
    """
    changed = bytes(atheris.Mutate(data, max_size))
    return _checked(changed) if seed % 8 else changed


def _checked(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    right = bytearray(data)
    position = 8
    while position + 12 <= len(right):
        end = position + 8 + int.from_bytes(right[position : position + 4], "big")
        if end + 4 > len(right):
            break
        right[end : end + 4] = struct.pack(">I", zlib.crc32(right[position + 4 : end]))
        position = end + 4
    return bytes(right)


if __name__ == "__main__":
    atheris.Setup(sys.argv, Target(), custom_mutator=mutate)
    atheris.Fuzz()
