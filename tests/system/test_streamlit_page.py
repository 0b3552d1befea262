"""`resnet-service ui` in a real browser, in front of a real service."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import Page, expect

from monitoring.local import free_port
from resnet_service.cli import main
from tests.support.browser import browsing, photographed
from tests.support.server import Running


@contextmanager
def page_server(service: str, log: Path) -> Iterator[str]:
    """Start the page's own server, which asks this service; yield its URL."""
    pytest.importorskip("streamlit", reason="needs the extra ui")
    port = str(free_port())
    command = [sys.executable, "-m", "resnet_service", "ui", "--url", service, "--port", port]
    with (
        log.open("w") as written,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        said = list(takewhile(lambda line: "URL" not in line, process.stdout))
        assert process.poll() is None, "".join(said) + log.read_text()
        yield f"http://127.0.0.1:{port}"
        process.kill()  # Streamlit waits for open pages when it is asked to end


@pytest.fixture(scope="module")
def ui(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's own server, which asks the module's service; its URL."""
    with page_server(server.url, tmp_path_factory.mktemp("ui") / "log") as url:
        yield url


@pytest.fixture
def page(ui: str) -> Iterator[Page]:
    with browsing(ui, height=1000) as page:
        page.goto(ui)
        expect(page.get_by_text("What is in the image?")).to_be_visible()
        yield page


def test_images_are_classified(page: Page, real_images: Path, tmp_path: Path) -> None:
    """Two uploads: the dog with its label first, and a text file with the service's own words."""
    expect(page.get_by_test_id("stSidebar")).to_contain_text("bundled")
    text = tmp_path / "notes.jpg"
    text.write_text("This is not an image.")
    page.locator("input[type=file]").set_input_files([str(real_images / "dog.jpg"), str(text)])
    expect(page.get_by_role("heading", name="dog,")).to_be_visible()
    expect(page.get_by_test_id("stImage").locator("img")).to_be_visible()
    expect(page.get_by_test_id("stProgress")).to_have_count(5)
    expect(page.get_by_text(re.compile(r"decode [\d.]+ ms"))).to_be_visible()
    expect(page.get_by_test_id("stAlert")).to_contain_text("notes.jpg: not an image")
    photographed(page, "ui")


def test_the_model_is_measured(page: Page) -> None:
    """The button runs the service's /bench and draws what it found."""
    page.get_by_role("button", name="Measure this model").click()
    expect(page.get_by_role("heading", name="Images a second")).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(2)
    photographed(page, "ui-bench")


def test_a_service_that_is_away(tmp_path: Path) -> None:
    """Where nothing answers, the page says so, and what to do; a visitor cannot have it ask elsewhere."""
    with page_server("http://127.0.0.1:9", tmp_path / "log") as url, browsing(url, height=1000) as page:
        page.goto(url)
        expect(page.get_by_test_id("stAlert")).to_contain_text("The service is away")
        expect(page.get_by_text("resnet-service serve")).to_be_visible()
        expect(page.get_by_role("textbox")).to_have_count(0)


def test_without_streamlit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the command says what to install."""
    monkeypatch.setattr(sys.modules["resnet_service.cli.serve"], "find_spec", lambda _: None)
    result = CliRunner().invoke(main, ["ui"])
    assert result.exit_code == 1
    assert "resnet-service[ui]" in result.stderr
