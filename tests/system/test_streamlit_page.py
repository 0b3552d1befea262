"""`resnet-service ui` in a real browser, with a real service."""

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
from pydantic import SecretStr

from monitoring.local import free_port
from resnet_service.cli import main
from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS
from tests.support.browser import browsing, photographed
from tests.support.models import write_checkpoint
from tests.support.server import Running, serving


@contextmanager
def page_server(url: str, log: Path) -> Iterator[str]:
    """Start the web server of the page for the service at `url`, and yield the URL of the page."""
    pytest.importorskip("streamlit", reason="needs the extra ui")
    port = str(free_port())
    command = [sys.executable, "-m", "resnet_service", "ui", "--url", url, "--port", port]
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            output = list(takewhile(lambda line: "URL" not in line, process.stdout))
            assert process.poll() is None, "".join(output) + log.read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()  # after a SIGTERM, Streamlit waits for open pages


@pytest.fixture(scope="module")
def page_url(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the page for the shared service; its URL."""
    with page_server(server.url, tmp_path_factory.mktemp("ui") / "log") as url:
        yield url


@pytest.fixture
def page(page_url: str) -> Iterator[Page]:
    with browsing(page_url, height=1000) as page:
        page.goto(page_url)
        expect(page.get_by_role("heading", name="Image classification")).to_be_visible()
        yield page


def test_uploaded_images_are_classified(page: Page, tmp_path: Path) -> None:
    """A photograph is shown with its classes and times, and a text file with the service's error message."""
    expect(page.get_by_test_id("stSidebar")).to_contain_text("cifar10")
    text = tmp_path / "notes.jpg"
    text.write_text("This is not an image.")
    page.locator("input[type=file]").set_input_files([str(PHOTOGRAPHS / "cat.jpg"), str(text)])
    expect(page.get_by_role("heading", name="cat,")).to_be_visible()
    expect(page.get_by_test_id("stImage").locator("img")).to_be_visible()
    expect(page.get_by_test_id("stProgress")).to_have_count(5)
    expect(page.get_by_text(re.compile(r"decode [\d.]+ ms"))).to_be_visible()
    expect(page.get_by_test_id("stAlert")).to_contain_text("notes.jpg: not an image")
    photographed(page, "ui")


def test_sample_image_is_classified_with_one_click(page: Page) -> None:
    """The photographs of the package can be selected, one or several."""
    page.get_by_role("button", name="dog.jpg").click()
    expect(page.get_by_role("heading", name="dog,")).to_be_visible()
    page.get_by_role("button", name="cat.jpg").click()
    expect(page.get_by_test_id("stImage").locator("img")).to_have_count(2)


def test_upload_limit_is_that_of_the_service(tmp_path: Path) -> None:
    """The page says it before an upload: 2 MB are up to 2 MiB for Streamlit."""
    with (
        serving(Settings(model="cifar10", max_upload_mb=2)) as service,
        page_server(service.url, tmp_path / "log") as url,
        browsing(url, height=1000) as page,
    ):
        page.goto(url)
        expect(page.get_by_test_id("stFileUploader")).to_contain_text("2MB per file")


def test_benchmark_button_draws_the_results_of_the_service(page: Page) -> None:
    page.get_by_role("button", name="Benchmark the model").click()
    # It measures five batch sizes, which once took over 30 s beside other tests.
    expect(page.get_by_role("heading", name="Images per second")).to_be_visible(timeout=180_000)
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(2)
    photographed(page, "ui-bench")


def test_unavailable_service_is_reported_with_a_hint(tmp_path: Path) -> None:
    """The page has no field for another URL, so visitors cannot make it send requests elsewhere."""
    with page_server("http://127.0.0.1:9", tmp_path / "log") as url, browsing(url, height=1000) as page:
        page.goto(url)
        expect(page.get_by_test_id("stAlert")).to_contain_text("Service unavailable")
        expect(page.get_by_text("resnet-service serve")).to_be_visible()
        expect(page.get_by_role("textbox")).to_have_count(0)


def test_page_shows_the_result_of_the_model_that_is_served_now(tmp_path: Path) -> None:
    """After a reload with other weights and labels of the same name, the image is classified again."""
    key, model = "k" * 16, tmp_path / "model.safetensors"
    write_checkpoint(model, "before-")
    settings = Settings(model=str(model), api_keys=SecretStr(f"{key} admin"), public_scopes="predict,bench")
    with (
        serving(settings) as service,
        page_server(service.url, tmp_path / "log") as url,
        browsing(url, height=1000) as page,
    ):
        page.goto(url)
        page.locator("input[type=file]").set_input_files(str(PHOTOGRAPHS / "cat.jpg"))
        expect(page.get_by_role("heading", name="before-cat,")).to_be_visible()
        write_checkpoint(model, "after-")
        authorization = {"Authorization": f"Bearer {key}"}
        assert service.client.post("/reload", headers=authorization, timeout=60).status_code == 200
        page.get_by_role("button", name="Benchmark the model").click()
        expect(page.get_by_role("heading", name="after-cat,")).to_be_visible()
        expect(page.get_by_role("heading", name="before-cat,")).to_have_count(0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "The service requires an API key: set RESNET_SERVICE_API_KEY"),
        ("w" * 16, "The service rejects the API key in RESNET_SERVICE_API_KEY: unknown API key"),
    ],
    ids=["missing", "unknown"],
)
def test_api_key_that_is_missing_or_unknown_is_reported_with_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, message: str
) -> None:
    """The HTTP headers, which the service names, are of no use on the page."""
    settings = Settings(model="cifar10", api_keys=SecretStr("k" * 16))
    if key is not None:
        monkeypatch.setenv("RESNET_SERVICE_API_KEY", key)
    with (
        serving(settings) as service,
        page_server(service.url, tmp_path / "log") as url,
        browsing(url, height=1000) as page,
    ):
        page.goto(url)
        expect(page.get_by_test_id("stAlert")).to_contain_text(message)
        expect(page.get_by_text("Authorization")).to_have_count(0)


def test_missing_streamlit_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["resnet_service.cli.serve"], "find_spec", lambda _: None)
    result = CliRunner().invoke(main, ["ui"])
    assert result.exit_code == 1
    assert "make install EXTRAS=ui" in result.stderr
