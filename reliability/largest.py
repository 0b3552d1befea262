"""The most that one request may ask for, of every kind: who else has to wait for it."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import httpx
import numpy as np
from PIL import Image
from tqdm import tqdm

from load_tests.pictures import draw
from reliability.bombs import tiff, tiff_tags
from reliability.measures import Pulse
from reliability.pictures import encode, png, png_chunk
from reliability.record import Verdict

_WIDTH, _HEIGHT = 8000, 6000
"""48 megapixels; the service's limit is 50 unless it is told otherwise."""
_BYTES: Final = 19_500_000
"""The service's limit is 20 MB."""
_VALUES: Final = 499_000
"""Values in JSON; the service's limit is 500,000."""
_NAMES: Final = 10_000
"""Names in JSON: the service's limit."""
_TIMES: Final = 3
_TIMEOUT_S: Final = 120
_LIMIT_MS: Final = 100
_BOUNDARY: Final = b"so-ends-a-part-of-this-form"


class Body(NamedTuple):
    """A request's body, and where to."""

    name: str
    path: str
    content: bytes
    media_type: str


@dataclass(frozen=True)
class Largest:
    """What a body was answered, how long that took at best, and the slowest answer of /healthz meanwhile."""

    name: str
    size: int
    status: int
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
            with Pulse(url) as pulse:
                answers = [
                    client.post(body.path, content=body.content, headers=headers) for _ in range(_TIMES)
                ]
            seconds = min(answer.elapsed.total_seconds() for answer in answers)
            results.append(
                Largest(
                    *(body.name, len(body.content), answers[-1].status_code, seconds),
                    *(pulse.slowest_ms, pulse.failures),
                )
            )
    return results


def rows(results: Sequence[Largest]) -> Iterator[Verdict]:
    """Return each promise, its figure, and whether it was kept."""
    slowest = max(results, key=lambda result: result.slowest_ms)
    failures = sum(result.failures for result in results)
    yield Verdict(
        f"/healthz answers within {_LIMIT_MS} ms meanwhile",
        f"slowest {slowest.slowest_ms:.0f} ms ({slowest.name}), {failures} failed",
        slowest.slowest_ms < _LIMIT_MS and not failures,
    )
    wrong = sum(result.status >= 500 for result in results)
    yield Verdict("no answer is a 5xx", f"{wrong} of {len(results)}", not wrong)


def figures(results: Sequence[Largest]) -> Iterator[tuple[str, str]]:
    """Return a line for each body."""
    for result in results:
        answered = f"{result.status} after {result.seconds * 1e3:.0f} ms"
        waited = f"/healthz at most {result.slowest_ms:.0f} ms"
        yield f"{result.name}, {result.size / 1e6:.1f} MB", f"{answered}; {waited}"


def all_bodies(url: str) -> Iterator[Body]:
    """Make them: pictures at the limit of pixels, forms and JSON at the limits of bytes and values."""
    for name, picture in (*_pictures(), *_headers()):
        if len(picture) <= _BYTES:
            yield Body(name, "/predict", picture, "image/*")
    media_type = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
    for name, content in _forms():
        yield Body(name, "/predict", content, media_type)
    model = httpx.get(f"{url}/info", timeout=_TIMEOUT_S).json()["model"]
    for name, content in _jsons():
        yield Body(name, f"/v2/models/{model}/infer", content, "application/json")


def _pictures() -> Iterator[tuple[str, bytes]]:
    rgb = draw(_WIDTH // 32, _HEIGHT // 32, 0).resize((_WIDTH, _HEIGHT), Image.Resampling.NEAREST)
    rgba = rgb.copy()
    rgba.putalpha(rgb.convert("L"))
    deep = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    yield "JPEG", encode(rgb, "JPEG")
    yield "JPEG, progressive", encode(rgb, "JPEG", progressive=True)
    yield "JPEG, CMYK", encode(rgb.convert("CMYK"), "JPEG")
    yield "PNG", encode(rgb, "PNG", compress_level=1)
    yield "PNG, transparent", encode(rgba, "PNG", compress_level=1)
    yield "PNG, palette", encode(rgb.convert("P"), "PNG", compress_level=1)
    yield "PNG, 16 bits", encode(deep, "PNG", compress_level=1)
    yield "WebP", encode(rgb, "WEBP", method=0)
    yield "WebP, transparent", encode(rgba, "WEBP", method=0)
    yield "WebP, lossless", encode(rgb, "WEBP", lossless=True, quality=0, method=0)
    yield "GIF", encode(rgb.convert("P"), "GIF")
    yield "TIFF, deflate", encode(rgb, "TIFF", compression="tiff_adobe_deflate")
    yield "TIFF, LZW, transparent", encode(rgba, "TIFF", compression="tiff_lzw")
    yield "BMP", encode(rgb.crop((0, 0, 2500, 2500)), "BMP")


def _headers() -> Iterator[tuple[str, bytes]]:
    """Yield headers of as many parts as are read."""
    strip = bytes(64)
    tags = tiff_tags(8, 8, 64)
    begin = 8 + 2 + 12 * (len(tags) + 1) + 4
    for name, kind, size in (("shorts", 3, 2), ("fractions", 5, 8)):
        values = strip + bytes([6, 0, 0, 0]) * (299_000 * size // 4)
        yield f"TIFF of 299,000 {name}", tiff({**tags, 258: (kind, 299_000, begin)}, values)
    text = tiff({**tags, 270: (2, _BYTES - 1000, begin)}, strip + b"a" * (_BYTES - 1000))
    yield "TIFF of one long comment", text
    small = ((16, 16, 8, 0, 0, 0, 0), zlib.compress(bytes(16 * 17)))
    yield "PNG of 49,000 chunks", png(*small, before=png_chunk(b"teSt", bytes(300)) * 49_000)


def _forms() -> Iterator[tuple[str, bytes]]:
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
        yield f"form of {name}", begin + part * (_BYTES // len(part)) + end
    yield "form of 200,000 parts", (begin + b"\r\n") * 200_000 + end
    yield "form of one endless header", b"--%s\r\nA: " % _BOUNDARY + b"a" * _BYTES


def _jsons() -> Iterator[tuple[str, bytes]]:
    request = b'{"inputs": [{"name": "x", "shape": [%s], "datatype": "%s", "data": [%s]}]}'
    flat = request % (b"1,3,32,32", b"FP32", b",".join([b"1.5"] * _VALUES))
    yield "JSON of 499,000 numbers", flat
    yield "JSON of 499,000 lists", request % (b"1,3,32,32", b"FP32", b",".join([b"[]"] * _VALUES))
    yield "JSON of 499,000 texts", request % (b"1", b"BYTES", b",".join([b'"a"'] * _VALUES))
    yield "JSON of 499,000 sides", request % (b",".join([b"1"] * _VALUES), b"FP32", b"1")
    yield "JSON of 499,000 inputs", b'{"inputs": [%s]}' % b",".join([b"{}"] * _VALUES)
    yield "JSON of 10,000 names", b"{%s}" % b",".join(b'"%d":1' % key for key in range(_NAMES))
    yield "JSON of 499,000 names", b"{%s}" % b",".join(b'"%d":1' % key for key in range(_VALUES))
    yield "JSON, deep", b"[" * _BYTES
    yield "JSON of one long text", b'{"id": "' + b"\\u0041" * (_BYTES // 6) + b'"}'
    yield "JSON of one long number", b'{"id": ' + b"1" * _BYTES + b"}"
