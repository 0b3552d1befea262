"""The most that one request may ask for, of every kind: who else has to wait for it."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from load_tests.decompression_bombs import tiff_directories, tiff_values, webp_in_a_corner
from load_tests.fuzz.sample_images import encode, png, png_chunk
from load_tests.health_prober import HealthProber
from load_tests.images import draw
from load_tests.request_log import Verdict

_WIDTH, _HEIGHT = 8000, 6000
"""48 megapixels; the service's limit is 50 unless it is told otherwise."""
_BYTES: Final = 19_500_000
"""The service's limit is 20 MB."""
_VALUES: Final = 499_000
"""Values in JSON; the service's limit is 500,000."""
_TAG_VALUES: Final = 299_000
"""Numbers in a TIFF's tags; the service's limit is 300,000."""
_TIMES: Final = 3
_TIMEOUT_S: Final = 120
_LIMIT_MS: Final = 100
_BOUNDARY: Final = b"so-ends-a-part-of-this-form"


class Body(NamedTuple):
    """A request's body, where to, and the status that it should be answered with."""

    name: str
    path: str
    content: bytes
    media_type: str
    status: int


@dataclass(frozen=True)
class Largest:
    """What a body was answered each time, and how long that took at best.

    `slowest_ms` is the slowest answer of /healthz meanwhile, and `failures` says how many were none.
    """

    body: Body
    statuses: list[int]
    seconds: float
    slowest_ms: float
    failures: int


def largest(url: str, bodies: Sequence[Body] | None = None, *, progress: bool = False) -> list[Largest]:
    """Send each body a few times, one after the other; those of `all_bodies` by default."""
    if bodies is None:
        bodies = list(all_bodies(url))
    results = []
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
        for body in tqdm(bodies, unit="body", disable=not progress):
            headers = {"Content-Type": body.media_type}
            with HealthProber(url) as pulse:
                answers = [
                    client.post(body.path, content=body.content, headers=headers) for _ in range(_TIMES)
                ]
            seconds = min(answer.elapsed.total_seconds() for answer in answers)
            results.append(
                Largest(
                    body,
                    [answer.status_code for answer in answers],
                    seconds,
                    pulse.slowest_ms,
                    pulse.failures,
                )
            )
    return results


def rows(results: Sequence[Largest]) -> Iterator[Verdict]:
    """Return each promise, its figure, and whether it was kept."""
    slowest = max(results, key=lambda result: result.slowest_ms)
    failures = sum(result.failures for result in results)
    yield Verdict(
        f"/healthz answers within {_LIMIT_MS} ms meanwhile",
        f"slowest {slowest.slowest_ms:.0f} ms ({slowest.body.name}), {failures} failed",
        slowest.slowest_ms < _LIMIT_MS and not failures,
    )
    wrong = [result.body.name for result in results if set(result.statuses) != {result.body.status}]
    yield Verdict(
        "each is answered, or rejected for what it is",
        f"{len(results) - len(wrong)} of {len(results)} {', '.join(wrong)}".rstrip(),
        not wrong,
    )


def figures(results: Sequence[Largest]) -> Iterator[tuple[str, str]]:
    """Return a line for each body."""
    for result in results:
        answered = f"{max(result.statuses)} after {result.seconds * 1e3:.0f} ms"
        waited = f"/healthz at most {result.slowest_ms:.0f} ms"
        yield f"{result.body.name}, {len(result.body.content) / 1e6:.1f} MB", f"{answered}; {waited}"


def all_bodies(url: str) -> Iterator[Body]:
    """Make them: images at the limit of pixels, forms and JSON at the limits of bytes and values.

    Raises ValueError where one is over the limit of bytes.
    """
    media_type = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
    model = httpx.get(f"{url}/info", timeout=_TIMEOUT_S).json()["model"]
    for path, kind, made in (
        ("/predict", "image/*", _images()),
        ("/predict", "image/*", _headers()),
        ("/predict", media_type, _forms()),
        (f"/v2/models/{model}/infer", "application/json", _jsons()),
    ):
        for name, content, status in made:
            if len(content) > _BYTES + 1000:
                raise ValueError(f"{name} has {len(content):,} bytes")
            yield Body(name, path, content, kind, status)


Made = tuple[str, bytes, int]
"""A name, the content, the status of its answer."""


def _images() -> Iterator[Made]:
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
    yield "WebP, animated in a corner", webp_in_a_corner(_WIDTH, _HEIGHT), 413


def _headers() -> Iterator[Made]:
    """Yield headers of as many parts as are read, or more."""
    for tag, name, kind, size, status in (
        (258, "shorts", 3, 2, 422),
        (258, "fractions", 5, 8, 200),
        (65_000, "fractions of one's own", 5, 8, 200),
    ):
        values = bytes([6, 0, 0, 0]) * (_TAG_VALUES * size // 4)
        yield f"TIFF of {_TAG_VALUES:,} {name}", tiff_values(tag, kind, values, _TAG_VALUES), status
    turned = b'tiff:Orientation="6"' * (_BYTES // 20)
    for tag, name, status in (
        (270, "comment", 200),
        (700, "XMP", 200),
        (273, "list of strips", 413),
        (320, "palette", 413),
        (338, "list of samples", 413),
    ):
        yield f"TIFF of one long {name}", tiff_values(tag, 1, turned, len(turned)), status
    yield "TIFF of endless directories", tiff_directories(_BYTES // 8 - 500), 200
    small = ((16, 16, 8, 0, 0, 0, 0), zlib.compress(bytes(16 * 17)))
    yield "PNG of 49,000 chunks", png(*small, before=png_chunk(b"teSt", bytes(300)) * 49_000), 200
    fractions = struct.pack("<HHHII", 1, 274, 5, _BYTES // 8 - 100, 26) + bytes(4)
    exif = b"II*\0" + struct.pack("<I", 8) + fractions + bytes([6, 0, 0, 0]) * (_BYTES // 4 - 100)
    yield "PNG of endless EXIF", png(*small, before=png_chunk(b"eXIf", exif)), 200
    lossy = encode(draw(48, 48, 0), "WEBP")
    many = lossy[8:] + b"teSt\0\0\0\0" * (_BYTES // 8 - 100)
    yield "WebP of endless chunks", b"RIFF" + struct.pack("<I", len(many)) + many, 413
    frames = b"\xff\xc0\xff\xff\x08" + bytes(65_532)
    yield "JPEG of endless components", b"\xff\xd8" + frames * (_BYTES // len(frames) - 1), 413
    gif = b"GIF89a\1\0\1\0\0\0\0!\xf9\4\x08\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;"
    yield "GIF of a frame of 4 gigapixels", gif, 413


def _forms() -> Iterator[Made]:
    """Yield forms whose contents nearly end, again and again."""
    begin = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' % _BOUNDARY
    end = b"\r\n--%s--\r\n" % _BOUNDARY
    for name, part in (
        ("line ends", b"\r\n"),
        ("returns", b"\r"),
        ("half boundaries", b"\r\n--"),
        ("nearly boundaries", b"\r\n--" + _BOUNDARY[:-1]),
        ("zeros", bytes(1000)),
    ):
        yield f"form of {name}", begin + part * (_BYTES // len(part)) + end, 415
    yield "form of 190,000 parts", (begin + b"\r\n") * 190_000 + end, 413
    yield "form of one endless header", b"--%s\r\nA: " % _BOUNDARY + b"a" * _BYTES, 422


def _jsons() -> Iterator[Made]:
    request = b'{"inputs": [{"name": "x", "shape": [%s], "datatype": "%s", "data": [%s]}]}'
    flat = request % (b"1,3,32,32", b"FP32", b",".join([b"1.5"] * _VALUES))
    yield "JSON of 499,000 numbers", flat, 422
    yield "JSON of 199,000 lists", request % (b"1,3,32,32", b"FP32", b",".join([b"[]"] * 199_000)), 422
    yield "JSON of 499,000 texts", request % (b"1", b"BYTES", b",".join([b'"a"'] * _VALUES)), 422
    yield "JSON of 499,000 sides", request % (b",".join([b"1"] * _VALUES), b"FP32", b"1"), 422
    yield "JSON of 199,000 inputs", b'{"inputs": [%s]}' % b",".join([b"{}"] * 199_000), 422
    yield "JSON of 49,000 names", b"{%s}" % b",".join(b'"%d":1' % name for name in range(49_000)), 422
    yield "JSON, deep", b"[" * _BYTES, 413
    yield "JSON of one long text", b'{"id": "' + b"a" * _BYTES + b'"}', 422
    yield "JSON of 990,000 escapes", b'{"id": "' + b"\\u0041" * 990_000 + b'"}', 422
    yield "JSON of endless escapes", b'{"id": "' + b"\\u0041" * (_BYTES // 6) + b'"}', 413
    yield "JSON of one long number", b'{"id": ' + b"1" * _BYTES + b"}", 422
