"""An atheris target for the decoders: python -m load_tests.fuzz.decoding SEEDS [libFuzzer's options].

It calls the code of the sandbox without the sandbox, so that libFuzzer sees which branches an input reaches,
and with the sandbox's limit on memory.
It is a process of its own, because libFuzzer ends its process. It regularly writes its memory after the
warm-up and now to standard error, as "rss_mb WARM NOW".
"""

import struct
import sys
import warnings
import zlib
from typing import Final

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["resnet_service.images", "PIL"]):
    from resnet_service.errors import InvalidImageError, PayloadTooLarge, UnsupportedMediaType
    from resnet_service.images import Preprocessing, decode_jpeg, formats
    from resnet_service.images.limits import DEFAULT_MEMORY_BYTES, limit_memory

from load_tests.fuzz.sample_images import encode, sample_image
from load_tests.health_prober import resident_mb

_PREPROCESSING: Final = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_MAX_PIXELS: Final = 1_000_000
"""Below the service's limit, so that a run spends its time on parsing instead of pixels."""
_WARM_UP_RUNS: Final = 2_000
_REPORT_INTERVAL: Final = 100


class DecodeTarget:
    """Decodes an input; an error other than the three declared ones is a crash."""

    def __init__(self) -> None:
        self._runs = 0
        self._warm_mb = 0.0

    def __call__(self, data: bytes) -> None:
        """Decode once."""
        self._runs += 1
        if self._runs % _REPORT_INTERVAL == 0:
            now_mb = resident_mb()
            if self._runs <= _WARM_UP_RUNS:
                self._warm_mb = now_mb
            sys.stderr.write(f"rss_mb {self._warm_mb:.1f} {now_mb:.1f}\n")
        try:
            decoded = decode_jpeg(data, _PREPROCESSING, _MAX_PIXELS)
            if decoded is None:
                decoded = formats.decode(data, _PREPROCESSING, _MAX_PIXELS)
        except (InvalidImageError, PayloadTooLarge, UnsupportedMediaType):
            return
        assert decoded.crop.shape == (32, 32, 3)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate an input as libFuzzer does; in 7 of 8 cases then correct the checksums of a PNG.

    Pillow rejects most PNGs with wrong checksums before it decodes them.
    """
    mutated = bytes(atheris.Mutate(data, max_size))
    return _correct_checksums(mutated) if seed % 8 else mutated


def _correct_checksums(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    corrected = bytearray(data)
    position = 8
    while position + 12 <= len(corrected):
        end = position + 8 + int.from_bytes(corrected[position : position + 4], "big")
        if end + 4 > len(corrected):
            break
        corrected[end : end + 4] = struct.pack(">I", zlib.crc32(corrected[position + 4 : end]))
        position = end + 4
    return bytes(corrected)


if __name__ == "__main__":
    # The first JPEG imports torch: 500 MB, which would look like a leak after the warm-up.
    DecodeTarget()(encode(sample_image(), "JPEG"))
    limit_memory(DEFAULT_MEMORY_BYTES)
    warnings.simplefilter("ignore")  # Pillow's, about damaged metadata and large images
    atheris.Setup(sys.argv, DecodeTarget(), custom_mutator=mutate)
    atheris.Fuzz()
