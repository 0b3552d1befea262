"""Invalid uploads and the limits on uploads, on a real server."""

from collections.abc import Iterator

import pytest

from resnet_service.settings import Settings
from tests.support.http import assert_problem, connected, files
from tests.support.images import bomb, encode, make_image
from tests.support.server import Running, serving

RAW_IMAGE = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


def test_text_instead_of_an_image_is_415(server: Running) -> None:
    """The content decides, not the file name or the content type of the part."""
    response = server.client.post("/predict", files={"file": ("dog.jpg", b"just text", "image/jpeg")})
    assert_problem(response, 415, "unsupported-media-type")


def test_truncated_jpeg_is_422(server: Running) -> None:
    """Half of a JPEG is an invalid image."""
    jpeg = encode(make_image(640, 480))
    response = server.client.post("/predict", files=files(jpeg[: len(jpeg) // 2]))
    assert_problem(response, 422, "invalid-image")


def test_image_with_too_many_pixels_is_413(server: Running) -> None:
    """A PNG of a few KB with 30,000 x 30,000 pixels is rejected."""
    response = server.client.post("/predict", files=files(bomb(30_000, 30_000)))
    assert "30000" in assert_problem(response, 413, "payload-too-large")


def test_empty_file_is_422(server: Running) -> None:
    """A part without bytes is an invalid image."""
    response = server.client.post("/predict", files=files(b""))
    assert "empty" in assert_problem(response, 422, "invalid-image")


def test_empty_image_body_is_422(server: Running) -> None:
    """An image/* body without bytes is an invalid image."""
    response = server.client.post("/predict", content=b"", headers={"content-type": "image/png"})
    assert "empty" in assert_problem(response, 422, "invalid-image")


def test_request_without_a_content_type_is_415(server: Running) -> None:
    """The response to a request without a body and a content type says what to send."""
    response = server.client.post("/predict")
    assert "'file'" in assert_problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "IMAGE/JPEG; name=x",
        "application/octet-stream",
        "binary/octet-stream",
        "application/x-www-form-urlencoded",
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_whole_body_is_an_image(server: Running, jpeg: bytes, path: str, content_type: str) -> None:
    """Clients send images without a content type, with that of S3, or with the one that curl sets."""
    headers = f"Content-Type: {content_type}\r\n" if content_type else ""
    with connected(server.url) as client:
        client.send(
            f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(jpeg)}\r\n\r\n".encode() + jpeg
        )
        assert client.answer()[0] == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "multipart/mixed; boundary=x"])
def test_other_content_type_is_415(server: Running, jpeg: bytes, content_type: str) -> None:
    """The response says what to send instead."""
    response = server.client.post("/predict", content=jpeg, headers={"content-type": content_type})
    assert "image/*" in assert_problem(response, 415, "unsupported-media-type")


def test_text_around_the_parts_of_a_form_is_ignored(server: Running, jpeg: bytes) -> None:
    """A form may have a preamble and an epilogue (RFC 2046), and file names in UTF-8 (RFC 5987)."""
    part = b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename%b\r\n\r\n' + jpeg
    names = [b'="a.jpg"', b"*=UTF-8''%e2%82%ac.jpg", b"=\"b.jpg\"; FileName*=iso-8859-1'en'%e9.jpg"]
    form = (
        b"preamble with --x in it"
        + b"".join(part.replace(b"%b", name) for name in names)
        + b"\r\n--x--\r\nend"
    )
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = server.client.post("/predict/batch", content=form, headers=headers)
    assert response.status_code == 200
    assert [result["filename"] for result in response.json()["results"]] == [
        "a.jpg",
        "\u20ac.jpg",
        "\u00e9.jpg",
    ]
    with connected(server.url) as client:
        client.send(
            b"POST /predict/batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        for byte in form:
            client.send(b"1\r\n%c\r\n" % byte)
        client.send(b"0\r\n\r\n")
        status, _, body = client.answer()
        assert (status, len(body["results"])) == (200, 3)


def test_form_without_the_file_field_is_422(server: Running, jpeg: bytes) -> None:
    """The response to a form without the field `file` lists the fields that it has."""
    response = server.client.post("/predict", files={"image": jpeg})
    assert "'image'" in assert_problem(response, 422, "invalid-request")


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_form_with_too_many_parts_is_413(server: Running, jpeg: bytes, path: str) -> None:
    """200 parts are more than the limit of 64."""
    response = server.client.post(path, files=files(*[jpeg] * 200))
    assert "64" in assert_problem(response, 413, "payload-too-large")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no boundary here"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'),
        ("multipart/form-data; boundary=x", b"--x\r\nbroken header\r\n\r\nabc\r\n--x--\r\n"),
        (f"multipart/form-data; boundary={'x' * 1000}", b"--x--\r\n"),
    ],
)
def test_malformed_form_is_422(server: Running, content_type: str, body: bytes) -> None:
    """A form without a boundary, truncated or with a malformed header is rejected."""
    response = server.client.post("/predict", content=body, headers={"content-type": content_type})
    assert_problem(response, 422, "invalid-request")


@pytest.fixture(scope="module")
def strict_server() -> Iterator[Running]:
    """Yield a server that accepts 0.1 MB within half a second."""
    with serving(Settings(model="cifar10", max_upload_mb=0.1, read_timeout_s=0.5)) as running:
        yield running


def test_declared_length_over_the_limit_is_413_before_the_body(strict_server: Running) -> None:
    """The response precedes the body, and the connection closes if the body does not follow in time."""
    with connected(strict_server.url) as client:
        client.send(f"{RAW_IMAGE}Content-Length: 900000000\r\n\r\n".encode())
        assert client.answer()[0] == 413
        assert client.is_closed()


def test_chunked_body_over_the_limit_is_413_before_its_end(strict_server: Running) -> None:
    """A body without a declared length is rejected while it is read."""
    with connected(strict_server.url) as client:
        client.send(f"{RAW_IMAGE}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(5):
            client.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        assert client.status() == 413


def test_client_that_sends_the_whole_body_first_can_read_the_413(strict_server: Running) -> None:
    """The connection is not reset while the client still sends a body that has been rejected."""
    response = strict_server.client.post("/predict", files=files(b"x" * 3_000_000))
    assert_problem(response, 413, "payload-too-large")


def test_incomplete_body_is_408_after_the_read_timeout(strict_server: Running) -> None:
    """A body that does not arrive in time is rejected, and the connection closed."""
    with connected(strict_server.url) as client:
        client.send(f"{RAW_IMAGE}Content-Length: 1000\r\n\r\nxxx".encode())
        assert client.answer()[0] == 408
        assert client.is_closed()
