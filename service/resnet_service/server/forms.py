"""Parse forms (multipart/form-data) in memory, while they arrive.

Starlette's form parser writes parts over 1 MB to temporary files, which a read-only container does not have.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from resnet_service.errors import InvalidRequestError, PayloadTooLarge
from resnet_service.hints import describe_unknown

FIELD: Final = "file"
"""The form field that images are uploaded in."""
_QUERY_FIELDS: Final = frozenset(("model", "version"))
"""The model has to be known before the body is read."""
_MAX_FIELD_BYTES: Final = 100
"""Of the other fields, which are numbers."""
_EXTENDED_FILENAME: Final = re.compile(
    rb"""; *filename\* *= *"?(utf-8|iso-8859-1)'[^';]*'([^;" ]*)""", re.IGNORECASE
)
"""The parameter `filename*` of RFC 5987, which the parser leaves out."""


@dataclass
class UploadedFile:
    """One image: the client's file name (never opened), and its bytes."""

    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Form:
    """The images of a request and the other fields, each of which occurs once."""

    images: list[UploadedFile] = field(default_factory=list)
    fields: dict[str, bytearray] = field(default_factory=dict)

    def texts(self) -> dict[str, str]:
        """Return the other fields as text."""
        return {name: data.decode("utf-8", "replace") for name, data in self.fields.items()}


class FormParser:
    """Collects the parts of one form: up to `max_images` images, and fields with the names `fields`.

        parser = FormParser(boundary, 64, {"top_k"})
        parser.write(chunk)
        form = parser.finish()

    Text before the first part and after the last one is ignored. `write` and `finish` raise
    InvalidRequestError if the form is malformed or has an unknown field, and PayloadTooLarge if it exceeds a
    limit.
    """

    def __init__(self, boundary: bytes, max_images: int, fields: Collection[str]) -> None:
        if not boundary:
            raise InvalidRequestError("the content type multipart/form-data has no boundary")
        self._delimiter = b"\r\n--" + boundary
        self._preamble: bytearray | None = bytearray(b"\r\n")  # the form may begin with its boundary
        self._parts = _Parts(max_images, fields)
        with _form_errors():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._parts.begin_part,
                    "on_part_data": self._parts.add_data,
                    "on_header_field": self._parts.add_header_name,
                    "on_header_value": self._parts.add_header_value,
                    "on_header_end": self._parts.end_header,
                    "on_headers_finished": self._parts.begin_data,
                    "on_end": self._parts.end,
                },
            )

    def write(self, chunk: bytes) -> None:
        """Parse the next bytes of the body."""
        if self._preamble is not None:
            self._preamble += chunk
            start = self._preamble.find(self._delimiter)
            if start < 0:
                del self._preamble[: -len(self._delimiter)]
                return
            chunk, self._preamble = bytes(self._preamble[start + 2 :]), None
        with _form_errors():
            self._parser.write(chunk)

    def finish(self) -> Form:
        """Return the form; raises InvalidRequestError also if it is incomplete or has no image."""
        with _form_errors():
            self._parser.finalize()
        if not self._parts.is_complete:
            raise InvalidRequestError("the form is empty or ends before its closing boundary")
        form = self._parts.form
        if not form.images:
            fields = ", ".join(sorted(map(repr, form.fields))) or "no fields"
            raise InvalidRequestError(f"the form has no field {FIELD!r}; it has {fields}")
        return form


class _Parts:
    """Receives the parts that the parser finds.

    It does not know the parser: objects that refer to each other, and with them the images, stay in memory
    until a garbage collection. Of 653 KB each, up to 780 did.
    """

    def __init__(self, max_images: int, fields: Collection[str]) -> None:
        self.form = Form()
        self.is_complete = False
        self._max_images = max_images
        self._fields = fields
        self._is_image = False
        self._data = bytearray()
        self._options: dict[bytes, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()

    def begin_part(self) -> None:
        self._options = {}

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, self._options = parse_options_header(bytes(self._header_value))
            if extended := _EXTENDED_FILENAME.search(self._header_value):
                charset = "latin-1" if extended[1].lower() == b"iso-8859-1" else "utf-8"
                filename = unquote_to_bytes(bytes(extended[2])).decode(charset, "replace")
                self._options[b"filename"] = filename.encode()
        self._header_name.clear()
        self._header_value.clear()

    def begin_data(self) -> None:
        """Take a part by its name, before its data arrives."""
        name = self._options.get(b"name", b"").decode("utf-8", "replace")
        self._is_image = name == FIELD
        if self._is_image:
            if len(self.form.images) == self._max_images:
                raise PayloadTooLarge(f"the form has more than {self._max_images} images")
            filename = self._options.get(b"filename")
            image = UploadedFile(None if filename is None else filename.decode("utf-8", "replace"))
            self.form.images.append(image)
            self._data = image.data
        elif name in _QUERY_FIELDS:
            raise InvalidRequestError("model and version belong in the query, such as /predict?model=NAME")
        elif name not in self._fields:
            raise InvalidRequestError(describe_unknown("form field", name, [FIELD, *self._fields]))
        elif name in self.form.fields:
            raise InvalidRequestError(f"the form has the field {name!r} twice")
        else:
            self._data = self.form.fields[name] = bytearray()

    def add_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]
        if not self._is_image and len(self._data) > _MAX_FIELD_BYTES:
            raise PayloadTooLarge(
                f"a form field other than {FIELD!r} is larger than {_MAX_FIELD_BYTES} bytes"
            )

    def end(self) -> None:
        self.is_complete = True


@contextmanager
def _form_errors() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise InvalidRequestError(f"malformed form: {error}") from error
