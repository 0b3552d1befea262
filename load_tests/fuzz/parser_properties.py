"""What must hold when a request's body is taken apart, whatever its bytes; raises AssertionError else."""

import asyncio
from collections.abc import Sequence
from typing import Final

from fastapi import Request
from hypothesis import strategies as st
from starlette.types import Message

from load_tests.fuzz import strategies
from load_tests.fuzz.strategies import MAX_IMAGES, MAX_PARTS, Form, Tensors
from resnet_service.errors import (
    InvalidImageError,
    InvalidRequestError,
    PayloadTooLarge,
    RequestTimeout,
    ServiceError,
    UnsupportedMediaType,
)
from resnet_service.models import Model
from resnet_service.server.uploads import FIELD, UploadedFile, UploadLimits, read_images
from resnet_service.server.v2.requests import parse

LIMITS: Final = UploadLimits(max_bytes=1_000_000, max_parts=MAX_PARTS, timeout_s=60)

REJECTIONS: Final = (
    InvalidRequestError,
    InvalidImageError,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
"""The errors that say whose fault it is: the sender's."""


def read(content_type: str, chunks: Sequence[bytes]) -> list[UploadedFile]:
    """Read the images of a request that arrives in these chunks; raises as `read_images`."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [(b"content-type", content_type.encode("latin-1"))],
    }
    return asyncio.run(read_images(Request(scope, receive), LIMITS))


def cut_forms() -> st.SearchStrategy[tuple[Form, list[bytes]]]:
    """Draw a valid form, and the chunks that it arrives in."""
    return strategies.forms().flatmap(lambda form: st.tuples(st.just(form), strategies.chunks(form.body)))


def a_form_is_read_alike_in_any_chunks(sent: tuple[Form, list[bytes]]) -> None:
    """Check that a valid form gives its images, however it was cut on its way."""
    form, chunks = sent
    expected = [part for part in form.parts if part[0] == FIELD]
    try:
        images = read(form.content_type, chunks)
    except InvalidRequestError:
        assert not expected
        return
    assert [(part.name, part.filename, bytes(part.data)) for part in images] == expected


def bad_forms() -> st.SearchStrategy[tuple[str, list[bytes]]]:
    """Draw a form with damage, or a body that is none, with a content type that may be another's."""
    forms = strategies.forms()
    hurt = forms.flatmap(
        lambda form: st.tuples(
            st.just(form.content_type) | strategies.content_types(),
            strategies.damaged(form.body) | st.binary(max_size=300),
        )
    )
    return hurt.flatmap(lambda sent: st.tuples(st.just(sent[0]), strategies.chunks(sent[1])))


def a_bad_form_is_rejected_or_read(sent: tuple[str, list[bytes]]) -> None:
    """Check that a form gives images or an error that says what is wrong with it."""
    try:
        images = read(*sent)
    except REJECTIONS:
        return
    assert images
    assert sum(len(part.data) for part in images) <= sum(map(len, sent[1]))


def a_request_has_its_images(sent: Tensors, model: Model) -> None:
    """Check that a valid request of the Open Inference Protocol gives as many images as it has."""
    asked = parse(bytearray(sent.body), sent.json_length, model, MAX_IMAGES)
    assert len(asked.images) == sent.count
    _made(asked.images, model)


def bad_requests(model: Model) -> st.SearchStrategy[tuple[bytes, int | None]]:
    """Draw a request with damage, with a length of JSON that may be another's, or any JSON."""
    lengths = st.none() | st.integers(0, 10_000) | st.just(10**18 - 1)
    hurt = strategies.tensors(model).flatmap(
        lambda sent: st.tuples(strategies.damaged(sent.body), st.just(sent.json_length) | lengths)
    )
    return st.one_of(
        hurt,
        strategies.messages().map(lambda body: (body, None)),
        st.tuples(strategies.messages(), lengths),
        st.tuples(st.binary(max_size=300), lengths),
    )


def a_bad_request_is_rejected_or_read(sent: tuple[bytes, int | None], model: Model) -> None:
    """Check that a request gives images or an error that says what is wrong with it."""
    body, json_length = sent
    try:
        asked = parse(bytearray(body), json_length, model, MAX_IMAGES)
        _made(asked.images, model)
    except REJECTIONS as error:
        _short(error)
        return
    assert 0 < len(asked.images) <= MAX_IMAGES


def _made(images: Sequence[object], model: Model) -> None:
    side = model.preprocessing.crop
    for image in images:
        crop = image() if callable(image) else image
        assert isinstance(crop, bytes) or getattr(crop, "shape", None) == (side, side, 3)


def _short(error: ServiceError) -> None:
    assert len(str(error)) < 1000, "an error that repeats what was sent"
