"""Forms are parsed in memory, and leave it as soon as they are not used any more."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from resnet_service.errors import ServiceError
from resnet_service.server.forms import FormParser

BODY = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    + bytes(1000)
    + b'\r\n--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n3\r\n--b--\r\n'
)


@pytest.fixture(autouse=True)
def without_garbage_collection() -> Iterator[None]:
    """Leave only reference counting."""
    gc.disable()
    yield
    gc.enable()


def test_images_are_freed_with_their_form() -> None:
    """Uploads that wait for the garbage collector would take memory beyond the limit on uploads."""
    parser = FormParser(b"b", 64, {"top_k"})
    parser.write(BODY % b"top_k")
    form = parser.finish()
    assert (len(form.images[0].data), form.texts()) == (1000, {"top_k": "3"})
    image = weakref.ref(form.images[0])
    del parser, form
    assert image() is None


def test_parser_of_an_invalid_form_is_freed() -> None:
    """The same holds for a form that is rejected in the middle."""
    parser = FormParser(b"b", 64, {"top_k"})
    with pytest.raises(ServiceError, match="unknown"):
        parser.write(BODY % b"topk")
    reference = weakref.ref(parser)
    del parser
    assert reference() is None
