"""Properties of the parsers of request bodies; a check raises AssertionError if its property is violated."""

import asyncio
from collections.abc import Sequence
from typing import Final

from fastapi import Request
from hypothesis import strategies as st
from starlette.types import Message

from load_tests.fuzz import strategies
from load_tests.fuzz.strategies import MAX_IMAGES, MAX_PARTS, Form, TensorRequest
from resnet_service.batching import Lane, MicroBatcher
from resnet_service.errors import (
    InvalidImageError,
    InvalidRequestError,
    PayloadTooLarge,
    RequestTimeout,
    ServiceError,
    UnsupportedMediaType,
)
from resnet_service.inference.request_timing import RequestTiming
from resnet_service.inference.served_model import QueuedCrop
from resnet_service.models import ModelDescription
from resnet_service.runtimes import TopKResult
from resnet_service.server.forms import FIELD, UploadedFile
from resnet_service.server.parameters import InferenceParameters
from resnet_service.server.uploads import Upload, UploadMemory
from resnet_service.server.v2.json_codec import parse_request
from resnet_service.settings import Settings

SETTINGS: Final = Settings(max_upload_mb=1, max_images_per_request=MAX_PARTS, read_timeout_s=60)
_MEMORY: Final = UploadMemory(1_000_000_000)

CLIENT_ERRORS: Final = (
    InvalidRequestError,
    InvalidImageError,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
"""The errors that the parsers may raise: each becomes a 4xx."""
_MAX_MESSAGE_CHARS: Final = 1000


async def _run_nothing(_: list[QueuedCrop]) -> list[TopKResult]:
    return []


def read_uploads(content_type: str, chunks: Sequence[bytes]) -> list[UploadedFile]:
    """Read the images of a request whose body arrives in these chunks; raises as `Upload.form` does."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return messages.pop(0)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [(b"content-type", content_type.encode("latin-1"))],
        "timing": RequestTiming(),
    }

    async def read() -> list[UploadedFile]:
        batcher: MicroBatcher[QueuedCrop, TopKResult] = MicroBatcher([_run_nothing], max_batch=1)
        batcher.start()
        try:
            with _MEMORY.account(Lane.INTERACTIVE) as account, batcher.reserve() as reservation:
                upload = Upload(Request(scope, receive), SETTINGS, account, reservation)
                return (await upload.form(InferenceParameters.model_fields)).images
        finally:
            await batcher.close(0)

    return asyncio.run(read())


def chunked_forms() -> st.SearchStrategy[tuple[Form, list[bytes]]]:
    """Draw a valid form and the chunks in which it arrives."""
    return strategies.forms().flatmap(lambda form: st.tuples(st.just(form), strategies.chunks(form.body)))


def check_chunked_form(example: tuple[Form, list[bytes]]) -> None:
    """Check that a valid form yields its images, however it is split into chunks."""
    form, chunks = example
    expected = [part[1:] for part in form.parts if part[0] == FIELD]
    try:
        images = read_uploads(form.content_type, chunks)
    except InvalidRequestError:
        assert not expected
        return
    assert [(image.filename, bytes(image.data)) for image in images] == expected


def malformed_forms() -> st.SearchStrategy[tuple[str, list[bytes]]]:
    """Draw (content type, chunks) of a damaged form or of random bytes."""
    forms = strategies.forms().flatmap(
        lambda form: st.tuples(
            st.just(form.content_type) | strategies.content_types(),
            strategies.damaged(form.body) | st.binary(max_size=300),
        )
    )
    return forms.flatmap(lambda form: st.tuples(st.just(form[0]), strategies.chunks(form[1])))


def check_malformed_form(example: tuple[str, list[bytes]]) -> None:
    """Check that any body yields images or a client error."""
    content_type, chunks = example
    try:
        images = read_uploads(content_type, chunks)
    except CLIENT_ERRORS:
        return
    assert images
    assert sum(len(part.data) for part in images) <= sum(map(len, chunks))


def check_tensor_request(request: TensorRequest, model: ModelDescription) -> None:
    """Check that a valid request of the Open Inference Protocol yields as many images as it contains."""
    parsed = parse_request(bytearray(request.body), request.json_length, model, MAX_IMAGES)
    assert len(parsed.images) == request.count
    _check_images(parsed.images, model)


def malformed_tensor_requests(model: ModelDescription) -> st.SearchStrategy[tuple[bytes, int | None]]:
    """Draw (body, length of its JSON) of a damaged request, of other JSON or of random bytes."""
    lengths = st.none() | st.integers(0, 10_000) | st.just(10**18 - 1)
    damaged_requests = strategies.tensor_requests(model).flatmap(
        lambda request: st.tuples(strategies.damaged(request.body), st.just(request.json_length) | lengths)
    )
    return st.one_of(
        damaged_requests,
        strategies.json_bodies().map(lambda body: (body, None)),
        st.tuples(strategies.json_bodies(), lengths),
        st.tuples(st.binary(max_size=300), lengths),
    )


def check_malformed_tensor_request(example: tuple[bytes, int | None], model: ModelDescription) -> None:
    """Check that any request yields images or a client error with a short message."""
    body, json_length = example
    try:
        parsed = parse_request(bytearray(body), json_length, model, MAX_IMAGES)
        _check_images(parsed.images, model)
    except CLIENT_ERRORS as error:
        _check_message(error)
        return
    assert 0 < len(parsed.images) <= MAX_IMAGES


def _check_images(images: Sequence[object], model: ModelDescription) -> None:
    side = model.preprocessing.crop
    for image in images:
        crop = image() if callable(image) else image
        assert isinstance(crop, bytes) or getattr(crop, "shape", None) == (side, side, 3)


def _check_message(error: ServiceError) -> None:
    assert len(str(error)) < _MAX_MESSAGE_CHARS, "the message repeats the request"
