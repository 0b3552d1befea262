"""The most expensive requests within the limits, of every kind, and how long they delay /healthz."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from load_tests.fuzz.decompression_bombs import tiff_directories, tiff_values, webp_in_a_corner
from load_tests.fuzz.sample_images import encode, png, png_chunk
from load_tests.health_prober import HealthProber
from load_tests.images import draw
from load_tests.report import Check

_WIDTH, _HEIGHT = 8000, 6000
"""48 megapixels; the service's default limit is 50."""
_MAX_BYTES: Final = 19_500_000
"""The service's default limit is 20 MB, with the form's own bytes."""
_JSON_VALUES: Final = 499_000
"""The service's limit on values in JSON is 500,000."""
_TAG_VALUES: Final = 299_000
"""Numbers in a tag of a TIFF, of which Pillow makes objects."""
_REPEATS: Final = 3
_TIMEOUT_S: Final = 120
_MAX_PROBE_MS: Final = 100
_BOUNDARY: Final = b"so-ends-a-part-of-this-form"


class WorstCase(NamedTuple):
    """A request: its name, path, body and media type, and the statuses that its response may have."""

    name: str
    path: str
    content: bytes
    media_type: str
    expected_statuses: tuple[int, ...]


@dataclass(frozen=True)
class WorstCaseResult:
    """The statuses of the responses to a request that was sent several times, and the shortest latency.

    `slowest_probe_ms` is the slowest response of /healthz meanwhile; `failed_probes` had none, or not a 200.
    """

    request: WorstCase
    statuses: list[int]
    seconds: float
    slowest_probe_ms: float
    failed_probes: int


def run_worst_cases(
    url: str, requests: Sequence[WorstCase] | None = None, *, show_progress: bool = False
) -> list[WorstCaseResult]:
    """Send each request three times, one after the other; by default all of `worst_cases`."""
    if requests is None:
        requests = list(worst_cases(url))
    results = []
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
        for request in tqdm(requests, unit="request", disable=not show_progress):
            headers = {"Content-Type": request.media_type}
            with HealthProber(url) as prober:
                responses = [
                    client.post(request.path, content=request.content, headers=headers)
                    for _ in range(_REPEATS)
                ]
            results.append(
                WorstCaseResult(
                    request,
                    [response.status_code for response in responses],
                    min(response.elapsed.total_seconds() for response in responses),
                    prober.slowest_ms,
                    prober.failures,
                )
            )
    return results


def checks(results: Sequence[WorstCaseResult]) -> Iterator[Check]:
    """Yield each guarantee with its measured value."""
    slowest = max(results, key=lambda result: result.slowest_probe_ms)
    failed = sum(result.failed_probes for result in results)
    yield Check(
        f"/healthz responds within {_MAX_PROBE_MS} ms meanwhile",
        f"slowest {slowest.slowest_probe_ms:.0f} ms ({slowest.request.name}), {failed} failed",
        slowest.slowest_probe_ms < _MAX_PROBE_MS and not failed,
    )
    unexpected = [
        result.request.name
        for result in results
        if not set(result.statuses) <= set(result.request.expected_statuses)
    ]
    yield Check(
        "each response has an expected status",
        f"{len(results) - len(unexpected)} of {len(results)} {', '.join(unexpected)}".rstrip(),
        not unexpected,
    )


def measurements(results: Sequence[WorstCaseResult]) -> Iterator[tuple[str, str]]:
    """Yield (name and size, status and times) of each request."""
    for result in results:
        response = f"{max(result.statuses)} after {result.seconds * 1e3:.0f} ms"
        probe = f"/healthz at most {result.slowest_probe_ms:.0f} ms"
        yield f"{result.request.name}, {len(result.request.content) / 1e6:.1f} MB", f"{response}; {probe}"


def worst_cases(url: str) -> Iterator[WorstCase]:
    """Yield images at the limit of pixels, and forms and JSON at the limits of bytes and values.

    Raises ValueError if one exceeds the limit of bytes.
    """
    media_type = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
    model = httpx.get(f"{url}/info", timeout=_TIMEOUT_S).json()["model"]
    for path, content_type, cases in (
        ("/predict", "image/*", _large_images()),
        ("/predict", "image/*", _large_headers()),
        ("/predict", media_type, _forms()),
        (f"/v2/models/{model}/infer", "application/json", _json_bodies()),
    ):
        for name, content, expected in cases:
            if len(content) > _MAX_BYTES + 1000:
                raise ValueError(f"{name} has {len(content):,} bytes")
            statuses = expected if isinstance(expected, tuple) else (expected,)
            yield WorstCase(name, path, content, content_type, statuses)


_Case = tuple[str, bytes, int | tuple[int, ...]]
"""A name, a body, and the expected status of the response, or the possible ones."""


def _large_images() -> Iterator[_Case]:
    rgb = draw(_WIDTH // 32, _HEIGHT // 32, 0).resize((_WIDTH, _HEIGHT), Image.Resampling.NEAREST)
    rgba = rgb.copy()
    rgba.putalpha(rgb.convert("L"))
    gray = rgb.convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    few = rgb.quantize(16, dither=Image.Dither.NONE)
    for name, image, kind, options in (
        ("JPEG", rgb, "JPEG", {}),
        ("JPEG, progressive", rgb, "JPEG", {"progressive": True}),
        ("JPEG, CMYK", rgb.convert("CMYK"), "JPEG", {}),
        ("JPEG, two images", rgb, "MPO", {"save_all": True, "append_images": [gray]}),
        ("PNG", rgb, "PNG", {"compress_level": 1}),
        ("PNG, transparent", rgba, "PNG", {"compress_level": 1}),
        ("PNG, palette", few, "PNG", {"compress_level": 1}),
        ("PNG, 16 bits", deep, "PNG", {"compress_level": 1}),
        ("WebP", rgb, "WEBP", {"method": 0}),
        ("WebP, transparent", rgba, "WEBP", {"method": 0}),
        ("WebP, lossless", few.convert("RGB"), "WEBP", {"lossless": True, "quality": 0, "method": 0}),
        ("GIF", few, "GIF", {}),
        ("TIFF, deflate", rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF, LZW, transparent", rgba.quantize(16).convert("RGBA"), "TIFF", {"compression": "tiff_lzw"}),
        ("BMP", rgb.crop((0, 0, 2500, 2500)), "BMP", {}),
    ):
        yield name, encode(image, kind, **options), 200
    small = rgb.resize((4000, 4000))
    yield "WebP, animated", encode(small, "WEBP", save_all=True, append_images=[small.rotate(180)]), 200
    yield "WebP, animated in a corner", webp_in_a_corner(_WIDTH, _HEIGHT), 200


def _large_headers() -> Iterator[_Case]:
    """Yield files whose headers have many parts, for which a decoder needs much time or memory."""
    for tag, name, kind, size, status in (
        (258, "shorts", 3, 2, 415),
        (258, "fractions", 5, 8, 415),
        (65_000, "private fractions", 5, 8, 200),
    ):
        values = bytes([6, 0, 0, 0]) * (_TAG_VALUES * size // 4)
        yield f"TIFF of {_TAG_VALUES:,} {name}", tiff_values(tag, kind, values, _TAG_VALUES), status
    orientations = b'tiff:Orientation="6"' * (_MAX_BYTES // 20)
    for tag, name, status in (
        (270, "comment", 200),
        (700, "XMP", 200),
        (273, "list of strips", 413),
        (320, "palette", 200),
        (338, "list of samples", 415),
    ):
        yield f"TIFF of one long {name}", tiff_values(tag, 1, orientations, len(orientations)), status
    yield "TIFF of endless directories", tiff_directories(_MAX_BYTES // 8 - 500), (200, 413)  # 10 s
    small = ((16, 16, 8, 0, 0, 0, 0), zlib.compress(bytes(16 * 17)))
    yield "PNG of 49,000 chunks", png(*small, before=png_chunk(b"teSt", bytes(300)) * 49_000), 200
    fractions = struct.pack("<HHHII", 1, 274, 5, _MAX_BYTES // 8 - 100, 26) + bytes(4)
    exif = b"II*\0" + struct.pack("<I", 8) + fractions + bytes([6, 0, 0, 0]) * (_MAX_BYTES // 4 - 100)
    yield "PNG of endless EXIF", png(*small, before=png_chunk(b"eXIf", exif)), (200, 413)  # 10 s
    lossy = encode(draw(48, 48, 0), "WEBP")
    chunks = lossy[8:] + b"teSt\0\0\0\0" * (_MAX_BYTES // 8 - 100)
    yield "WebP of endless chunks", b"RIFF" + struct.pack("<I", len(chunks)) + chunks, 200
    frames = b"\xff\xc0\xff\xff\x08" + bytes(65_532)
    yield "JPEG of endless components", b"\xff\xd8" + frames * (_MAX_BYTES // len(frames) - 1), 422
    gif = b"GIF89a\1\0\1\0\0\0\0!\xf9\4\x08\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;"
    yield "GIF of a frame of 4 gigapixels", gif, 413


def _forms() -> Iterator[_Case]:
    """Yield forms whose contents repeat what looks like their end."""
    begin = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' % _BOUNDARY
    end = b"\r\n--%s--\r\n" % _BOUNDARY
    for name, part in (
        ("line ends", b"\r\n"),
        ("returns", b"\r"),
        ("half boundaries", b"\r\n--"),
        ("nearly boundaries", b"\r\n--" + _BOUNDARY[:-1]),
        ("zeros", bytes(1000)),
    ):
        yield f"form of {name}", begin + part * (_MAX_BYTES // len(part)) + end, 415
    yield "form of 190,000 parts", (begin + b"\r\n") * 190_000 + end, 413
    yield "form of one endless header", b"--%s\r\nA: " % _BOUNDARY + b"a" * _MAX_BYTES, 422


def _json_bodies() -> Iterator[_Case]:
    request = b'{"inputs": [{"name": "x", "shape": [%s], "datatype": "%s", "data": [%s]}]}'
    flat = request % (b"1,3,32,32", b"FP32", b",".join([b"1.5"] * _JSON_VALUES))
    yield "JSON of 499,000 numbers", flat, 422
    yield "JSON of 199,000 lists", request % (b"1,3,32,32", b"FP32", b",".join([b"[]"] * 199_000)), 422
    yield "JSON of 499,000 texts", request % (b"1", b"BYTES", b",".join([b'"a"'] * _JSON_VALUES)), 422
    yield "JSON of 499,000 sides", request % (b",".join([b"1"] * _JSON_VALUES), b"FP32", b"1"), 422
    yield "JSON of 199,000 inputs", b'{"inputs": [%s]}' % b",".join([b"{}"] * 199_000), 422
    yield "JSON of 49,000 names", b"{%s}" % b",".join(b'"%d":1' % name for name in range(49_000)), 422
    yield "JSON, deep", b"[" * _MAX_BYTES, 413
    yield "JSON of one long text", b'{"id": "' + b"a" * _MAX_BYTES + b'"}', 422
    yield "JSON of 990,000 escapes", b'{"id": "' + b"\\u0041" * 990_000 + b'"}', 422
    yield "JSON of endless escapes", b'{"id": "' + b"\\u0041" * (_MAX_BYTES // 6) + b'"}', 413
    yield "JSON of one long number", b'{"id": ' + b"1" * _MAX_BYTES + b"}", 422
