"""Run every example of docs/http-reference.md, and compare the responses with those shown.

The examples of each language run in the order of the page against one service, and together use all endpoints
of its OpenAPI document.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from playwright._impl._driver import compute_driver_executable
from pydantic import BaseModel

from monitoring.local import free_port
from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.pages import Block, assert_same_form, blocks
from tests.support.processes import started
from tests.support.server import only_once

pytestmark = only_once

PAGE: Final = REPOSITORY / "docs/http-reference.md"
ADMIN_KEY: Final = "0123456789abcdef"
PREAMBLE: Final = "Before the examples"
LANGUAGES: Final = ("curl", "python", "javascript")


@dataclass(frozen=True)
class Service:
    """The running service, and a folder with the images of the page."""

    url: str
    management_url: str
    folder: Path

    def adapt(self, text: str) -> str:
        """Replace the addresses of the page by those of the service."""
        text = text.replace("http://localhost:8000", self.url).replace(
            "http://localhost:8001", self.management_url
        )
        return text.replace("localhost:8000", self.url).replace("localhost:8001", self.management_url)

    def operations(self) -> set[str]:
        """Return all operations, such as `GET /info`."""
        paths = httpx.get(f"{self.url}/openapi.json").json()["paths"]
        return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}

    def counts(self) -> dict[str, float]:
        """Return the number of successful requests of each operation."""
        text = httpx.get(f"{self.url}/metrics").text
        pattern = r'inference_request_seconds_count{method="(\w+)",route="([^"]+)",status="2\d\d"} (\S+)'
        return {f"{method} {route}": float(count) for method, route, count in re.findall(pattern, text)}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Yield the service that the page describes."""
    folder = tmp_path_factory.mktemp("reference")
    for name in ("dog.jpg", "cat.jpg"):
        shutil.copy(PHOTOGRAPHS / name, folder)
    export, command = next(block for block in blocks(PAGE) if block.heading == PREAMBLE).commands
    keys = shlex.split(export)[1].partition("=")[2].replace("$ADMIN_KEY", ADMIN_KEY)
    flags = command.removeprefix("resnet-service serve ").split()
    port = str(free_port())
    with started(*flags, RESNET_SERVICE_API_KEYS=keys, RESNET_SERVICE_MANAGEMENT_PORT=port) as (_, _, url):
        yield Service(url, f"http://127.0.0.1:{port}", folder)


def sections() -> dict[str, dict[str, Block]]:
    """Return the blocks of each section by their language; the commands of curl are `curl`."""
    by_heading: dict[str, dict[str, Block]] = {}
    for block in blocks(PAGE):
        by_heading.setdefault(block.heading, {})[block.language or "curl"] = block
    return by_heading


def run_curl(code: str, service: Service) -> list[Any]:
    """Run the commands of a block, and return the bodies of the responses."""
    bodies = []
    for command in filter(None, map(str.strip, code.splitlines())):
        result = subprocess.run(
            ["bash", "-c", service.adapt(command.replace("curl ", "curl --silent --show-error "))],
            cwd=service.folder,
            env={**os.environ, "ADMIN_KEY": ADMIN_KEY},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        if "curl " in command:
            bodies.append(parsed(result.stdout))
    return bodies


def run_python(code: str, service: Service) -> list[Any]:
    """Run a block after the preamble, and return what it prints."""
    printed: list[Any] = []
    program = service.adapt(f"{sections()[PREAMBLE]['python'].text}\n{code}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(service.folder)
        patch.setenv("ADMIN_KEY", ADMIN_KEY)
        names: dict[str, Any] = {"print": printed.append}
        exec(compile(program, str(PAGE), "exec"), names)
    for name in ("client", "http", "management"):
        names[name].close()
    return [
        value.model_dump(mode="json") if isinstance(value, BaseModel) else parsed(value) for value in printed
    ]


def run_javascript(code: str, service: Service) -> list[Any]:
    """Run a block after the preamble with the Node.js of Playwright, and return what it logs."""
    node, _ = compute_driver_executable()
    log = "console.log = (value) => process.stdout.write(`${JSON.stringify(value)}\\n`);"
    program = service.adapt(f"{sections()[PREAMBLE]['javascript'].text}\n{log}\n{code}")
    result = subprocess.run(
        [node, "--input-type=module", "--eval", program],
        cwd=service.folder,
        env={**os.environ, "ADMIN_KEY": ADMIN_KEY},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [parsed(json.loads(line)) for line in result.stdout.splitlines()]


RUN: Final[dict[str, Callable[[str, Service], list[Any]]]] = {
    "curl": run_curl,
    "python": run_python,
    "javascript": run_javascript,
}


def parsed(value: Any) -> Any:
    """Return the value of a body in JSON; any other value as it is."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def test_every_operation_has_a_section() -> None:
    """Each section has an example in each language, and they are in the same order everywhere."""
    for heading, languages in sections().items():
        if heading != PREAMBLE:
            assert [name for name in languages if name in LANGUAGES] == list(LANGUAGES), heading


@pytest.mark.parametrize("language", LANGUAGES)
def test_examples_return_what_the_page_shows(service: Service, language: str) -> None:
    """Each example succeeds with a body as shown; together they use every operation."""
    before = service.counts()
    for heading, languages in sections().items():
        if heading == PREAMBLE:
            continue
        bodies = RUN[language](languages[language].text, service)
        assert bodies, heading
        for body in bodies:
            if "json" in languages:
                shown = json.loads(languages["json"].text)
                assert_same_form(shown, body, f"{heading} in {language}")
                assert body_status(body) == body_status(shown), heading
            elif "metrics" in heading:
                assert "# HELP inference_request_seconds" in body
            else:
                assert body == "", heading
    after = service.counts()
    assert {name for name, count in after.items() if count > before.get(name, 0)} >= service.operations()


def body_status(body: Any) -> Any:
    """Return the status of a problem, and None for other bodies."""
    return body.get("status") if isinstance(body, dict) else None
