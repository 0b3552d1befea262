"""The OpenAPI document and its page, in a real browser without the internet."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect, sync_playwright

from tests.conftest import Running

CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or "")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def page(server: Running) -> Iterator[Page]:
    """A page of a headless Chromium that can reach this server and nothing else."""
    if not CHROMIUM:
        pytest.skip("needs Chromium (Debian's package chromium, or its path in CHROMIUM)")
    foreign: list[str] = []

    def guard(route: Route) -> None:
        if route.request.url.startswith((server.url, "data:", "blob:")):
            route.continue_()
        else:
            foreign.append(route.request.url)
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.route("**/*", guard)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert foreign == []
    assert errors == []


def test_a_picture_can_be_classified_from_the_page(
    server: Running, page: Page, jpeg: bytes, tmp_path: Path
) -> None:
    """The page shows without the internet, and its "Try it out" uploads a picture and shows the answer."""
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(jpeg)
    page.goto(f"{server.url}/")
    operation = page.locator("#operations-predict-predict_predict_post")
    operation.get_by_text("Classify one picture").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("input[type=file]").set_input_files(str(picture))
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table")
    expect(answer.locator(".response-col_status").last).to_contain_text("200")
    expect(answer.locator(".response-col_description").last).to_contain_text("predictions")
    if folder := os.environ.get("SCREENSHOTS"):
        operation.get_by_role("button", name="Execute").evaluate("button => button.scrollIntoView()")
        page.screenshot(path=f"{folder}/openapi.png")


def test_every_operation_is_described(server: Running) -> None:
    """Each operation has a summary, a described success, and the service's problems for its errors."""
    document = server.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/predict", "/predict/batch", "/bench", "/metrics", "/healthz", "/readyz", "/info")
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "200" in operation["responses"]
            for status, response in operation["responses"].items():
                assert response["description"], (path, status)
                if status != "200":
                    schema = response["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}
    assert set(document["components"]["schemas"]["Problem"]["required"]) == {
        *("type", "title", "status", "detail")
    }
