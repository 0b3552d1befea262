"""Hypothesis strategies for request bodies: valid forms and tensor requests, and damaged ones."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st

from resnet_service.models import ModelDescription
from resnet_service.server.v2 import schemas

FUZZING: Final = settings(
    deadline=None,
    database=None,
    derandomize=False,  # hypothesis's default changes if the environment variable CI is set
    verbosity=Verbosity.quiet,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
"""Settings for long runs: exactly `max_examples`, different in each run, without a database."""

MAX_PARTS: Final = 8
MAX_IMAGES: Final = 4

Test = TypeVar("Test", bound=Callable[..., None])


def seeded(number: int) -> Callable[[Test], Test]:
    """Return a decorator that makes a test draw the same examples each time; without effect for 0."""
    return seed(number) if number else lambda test: test


FormPart = tuple[str, str | None, bytes]
"""A part of a form: the name of the field, the name of the file, and the content."""


@dataclass(frozen=True)
class Form:
    """A multipart form: its content type, its encoded body, and its parts."""

    content_type: str
    body: bytes
    parts: Sequence[FormPart]


@dataclass(frozen=True)
class TensorRequest:
    """A request of the Open Inference Protocol with `count` images.

    The body is `json_length` bytes of JSON and then binary data, or JSON only if that is None.
    """

    body: bytes
    json_length: int | None
    count: int

    def __repr__(self) -> str:
        """Return a short form for the reports of hypothesis."""
        return f"TensorRequest({self.body[:300]!r}..., {self.json_length}, {self.count})"


_WORDS: Final = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=("Cc", "Cs")), max_size=12
)
_DATA: Final = st.one_of(
    st.binary(max_size=200),
    # Sequences that resemble the end of a part.
    st.lists(st.sampled_from([b"\r", b"\n", b"--", b"\r\n--", b"\r\n--b", b"a", b""]), max_size=12).map(
        b"".join
    ),
)


@st.composite
def forms(draw: st.DrawFn) -> Form:
    """Draw a valid form. It has a part named `file`, unless its content contains the boundary."""
    boundary = draw(st.text("abcXYZ019'()+_,-./:=?", min_size=1, max_size=70)).encode()
    images = st.tuples(st.just("file"), st.none() | _WORDS, _DATA)
    parts = draw(st.lists(images, min_size=1, max_size=MAX_PARTS))
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), ("top_k", None, draw(st.binary(max_size=100))))
    parts = [part for part in parts if b"\r\n--" + boundary not in b"\r\n" + part[2]]
    body = b"".join(_encode_part(boundary, *part, typed=draw(st.booleans())) for part in parts)
    return Form(
        f'multipart/form-data; boundary="{boundary.decode()}"', body + b"--" + boundary + b"--\r\n", parts
    )


def _encode_part(boundary: bytes, name: str, filename: str | None, data: bytes, typed: bool) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    headers = disposition + ("\r\nContent-Type: image/png" if typed else "")
    return b"--" + boundary + b"\r\n" + headers.encode() + b"\r\n\r\n" + data + b"\r\n"


@st.composite
def chunks(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """Split a body at any positions; chunks may be empty."""
    cuts = draw(st.lists(st.integers(0, len(body)), max_size=12).map(sorted))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """Remove, replace or repeat pieces of a body, as a broken client or an attacker would."""
    result = bytearray(body)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(result)))
        end = draw(st.integers(start, min(len(result), start + 40)))
        result[start:end] = draw(
            st.one_of(
                st.just(b""),
                st.just(bytes(result[start:end]) * 2),
                st.binary(max_size=8),
                st.sampled_from(
                    [b"\r\n", b"\0", b"--", b'"', b";", b":", b"[", b"{", b"9" * 40, b"\xff" * 4]
                ),
            )
        )
    return bytes(result)


def content_types() -> st.SearchStrategy[str]:
    """Draw values of the header Content-Type, most of them of forms."""
    boundary = st.text(st.characters(max_codepoint=255), max_size=80)
    return st.one_of(
        boundary.map(lambda word: f"multipart/form-data; boundary={word}"),
        boundary.map(lambda word: f'multipart/form-data; boundary="{word}'),
        boundary.map(lambda word: f"multipart/{word}"),
        boundary,
        st.sampled_from(["", "image/png", "multipart/form-data", "multipart/form-data; boundary*=utf-8''b"]),
    )


@st.composite
def tensor_requests(draw: st.DrawFn, model: ModelDescription) -> TensorRequest:
    """Draw a valid request for one of the model's inputs, in JSON or with binary data."""
    declared = draw(st.sampled_from(list(schemas.input_tensors(model).values())))
    count = draw(st.integers(1, MAX_IMAGES))
    tensor: dict[str, Any] = {
        "name": declared.name,
        "datatype": declared.datatype,
        "shape": [count, *declared.shape[1:]],
    }
    binary = draw(st.booleans())
    data: bytes = b""
    if declared.name == schemas.IMAGE_INPUT:
        if binary:
            images = [draw(_DATA) for _ in range(count)]
            data = b"".join(len(image).to_bytes(4, "little") + image for image in images)
        else:
            tensor["data"] = ["R0lGODlh"] * count
    else:
        values = prod(tensor["shape"])
        if binary:
            width = {"UINT8": 1, "FP32": 4}[declared.datatype]
            data = bytes([draw(st.integers(0, 127))]) * (values * width)
        else:
            tensor["data"] = [draw(st.integers(0, 255))] * values
    if binary:
        tensor["parameters"] = {"binary_data_size": len(data)}
    header = json.dumps({"inputs": [tensor]}).encode()
    return TensorRequest(header + data, len(header) if binary else None, count)


_JSON: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([-1, 0, 2**31, 2**63, 10**30, "image", "pixels", "input", "FP32", "UINT8", "BYTES"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_PARAMETERS: Final = ("binary_data_size", "binary_data", "classification", "top_k", "shared_memory_region")


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """Draw JSON with the keys of the protocol and any values."""
    parameters = st.one_of(_JSON, st.dictionaries(st.sampled_from(_PARAMETERS), _JSON, max_size=3))
    tensor = st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["image", "pixels", "input", "label", "probabilities"]) | _JSON,
            "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]) | _JSON,
            "shape": st.lists(st.integers(-1, 40), max_size=4) | _JSON,
            "data": _JSON,
            "parameters": parameters,
        },
    )
    message = st.fixed_dictionaries(
        {},
        optional={
            "id": _JSON,
            "inputs": st.lists(st.one_of(tensor, _JSON), max_size=2) | _JSON,
            "outputs": st.lists(st.one_of(tensor, _JSON), max_size=2) | _JSON,
            "parameters": parameters,
        },
    )
    return json.dumps(draw(message | _JSON)).encode()
