"""The messages of docs/troubleshooting.md exist: most are provoked, and the others are found in the code."""

import ast
import gzip
import re
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import httpx
import pytest
import torch
from safetensors.torch import save_file

from resnet_service.client import Client, ServiceUnavailableError
from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.commands import run_command
from tests.support.file_server import FileServer
from tests.support.images import encode, make_image
from tests.support.processes import environment
from tests.support.server import Running, only_once, serving

pytestmark = only_once

PAGE: Final = REPOSITORY / "docs/troubleshooting.md"
SCRIPTS: Final = [REPOSITORY / "Makefile"]
KEY: Final = "0123456789abcdef"
JPEG: Final = (PHOTOGRAPHS / "dog.jpg").read_bytes()


def messages() -> list[str]:
    """Return the headings of the page that are messages."""
    return re.findall(r"^### (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@cache
def templates() -> list[str]:
    """Return the strings of the code, with … for the parts that are computed."""
    sources = [*(REPOSITORY / "service").rglob("*.py"), *(REPOSITORY / "deploy").glob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(map(_template, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def _template(part: ast.expr) -> str:
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "…"


def pattern(message: str) -> re.Pattern[str]:
    """Return what matches a message of the page, with anything in place of …."""
    return re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """Yield a server whose only key has a rate of one request in ten seconds, with small uploads."""
    with serving(Settings(model="cifar10", api_keys=f"{KEY} predict 0.1/s", max_upload_mb=0.5)) as running:
        yield running


def send(url: str, **options: object) -> Callable[[Running], str]:
    """Return a function that posts a request and returns the response's text."""
    return lambda server: server.client.post(url, **options).text  # type: ignore[arg-type]


REQUESTS: Final[dict[str, Callable[[Running], str]]] = {
    "requires an API key with the scope 'admin', and no API keys are configured": send("/reload"),
    "not an image in a supported format (…)": send("/predict", files={"file": b"<html>"}),
    "the image is empty (0 bytes)": send("/predict", files={"file": b""}),
    "unknown form field …; expected 'file' or …": send("/predict", files={"image": JPEG}),
    "send multipart/form-data with the field 'file', or an image with an image/* content type": send(
        "/predict", json={"image": "base64"}
    ),
    "unknown parameter …; did you mean …?": send("/predict?topk=3", files={"file": JPEG}),
    "expected one image, got …; use /predict/batch": send("/predict", files=[("file", JPEG), ("file", JPEG)]),
    "unknown model …; the server has …": send("/predict?model=other", files={"file": JPEG}),
    "the JPEG is truncated: a part of its pixels is missing": send(
        "/predict", files={"file": JPEG[: len(JPEG) // 2]}
    ),
    "Content-Encoding … is not supported; send it as is": send(
        "/predict", content=gzip.compress(JPEG), headers={"Content-Encoding": "gzip"}
    ),
}
"""Messages of responses -> a request that gets them."""


@pytest.mark.parametrize("message", REQUESTS)
def test_response_has_the_message(message: str, server: Running) -> None:
    """A request of the kind that the page describes gets the message."""
    assert pattern(message).search(REQUESTS[message](server).replace("\\n", "\n"))


KEY_MESSAGES: Final = (
    "missing API key; send Authorization: Bearer KEY, or X-API-Key: KEY",
    "unknown API key",
    "the request body is larger than … bytes",
    "rate limit of this API key exceeded (… requests per second)",
)


def test_responses_for_api_keys_have_the_messages(locked: Running) -> None:
    """A missing, an unknown and an exhausted key, and an upload that is too large."""
    headers = {"X-API-Key": KEY}
    requests = [
        (b"", {}),
        (b"", {"X-API-Key": "another0123456789"}),
        (bytes(600_000), headers),
        (b"", headers),
    ]
    for message, (body, sent) in zip(KEY_MESSAGES, requests, strict=True):
        response = locked.client.post(
            "/predict", content=body, headers={"Content-Type": "image/jpeg", **sent}
        )
        assert pattern(message).search(response.text)


NOT_HTTP: Final = "malformed HTTP request, several Host fields, or a protocol upgrade with a body"


def test_connection_with_tls_gets_the_message(server: Running) -> None:
    """What is not HTTP gets 400 with the message."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=30) as connection:
        connection.sendall(b"NOT HTTP\r\n\r\n")
        response = connection.makefile("rb").read().decode()
    assert pattern(NOT_HTTP).search(response)


COMMANDS: Final = {
    "unknown environment variable …; did you mean …?": ("serve", {"RESNET_SERVICE_MODLE": "cifar10"}),
    "cannot listen on …: the address is already in use; select another …": ("serve --port TAKEN", {}),
    "cannot listen on …: this machine does not have the address; --host :: selects all interfaces": (
        "serve --host 192.0.2.1",
        {},
    ),
    "cannot resolve the host …": ("serve --host no-host.invalid", {}),
    "it is neither a torchvision classifier nor a file": ("serve --model resnt50", {}),
    "cannot load the model …: file not found": ("serve --model missing.safetensors", {}),
    "the weights are for … classes, and … has … labels": ("serve --labels labels.txt", {}),
    "the weights do not fit …": ("serve --model resnet18 --weights other.safetensors", {}),
    "cuda is not available: …; use cpu or auto": ("serve --device cuda", {}),
    "fp16 is not supported on the CPU; use bf16 or fp32": ("serve --precision fp16", {}),
    "int8 needs a quantized model: see resnet-service quantize --help": ("serve --precision int8", {}),
    "API key … has fewer than 16 visible ASCII characters": ("serve", {"RESNET_SERVICE_API_KEYS": "short"}),
    "--freeze needs --weights: a network with random weights has learned nothing": (
        "train --data photos --network lenet --freeze --output run",
        {},
    ),
}
"""Messages of commands -> a command and its environment."""


@pytest.mark.parametrize("message", COMMANDS)
def test_command_prints_the_message(message: str, tmp_path: Path) -> None:
    """A command of the kind that the page describes fails with the message."""
    if "cuda" in message and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "0.jpg").write_bytes(encode(make_image()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments, variables = COMMANDS[message]
        words = arguments.replace("TAKEN", str(taken.getsockname()[1])).split()
        if words[0] == "serve" and "--port" not in words:
            words += ["--port", "0"]
        status, output = run_command(words, tmp_path, environment(**variables), timeout_s=120)
    assert status != 0
    assert "Traceback" not in output
    assert pattern(message).search(output), output


CLIENT_MESSAGES: Final = ("… does not respond: …", "… is not a resnet-service endpoint")


def test_client_has_the_messages(file_server: FileServer) -> None:
    """Of an address where nothing listens, and of one where another server does."""
    (file_server.folder / "info").write_text("another server")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url, message in zip((f"http://127.0.0.1:{port}", file_server.url), CLIENT_MESSAGES, strict=True):
        with Client(url, attempts=1) as client, pytest.raises(ServiceUnavailableError) as error:
            client.info()
        assert pattern(message).search(str(error.value))


PROVOKED: Final = {*REQUESTS, *COMMANDS, *KEY_MESSAGES, *CLIENT_MESSAGES, NOT_HTTP}


def test_provoked_messages_are_on_the_page() -> None:
    """The messages that the tests above provoke are headings of the page."""
    assert set(messages()) >= PROVOKED


@pytest.mark.parametrize("message", sorted(set(messages()) - PROVOKED))
def test_message_is_in_the_code(message: str) -> None:
    """The parts of every other heading, between …, are in strings of the code."""
    for part in filter(None, (part.strip(" :;()") for part in message.split("…"))):
        assert any(part in text for text in templates()), part
