"""The OpenAPI page in a real browser without access to the internet."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from resnet_service.settings import Settings
from tests.support.browser import browsing, photographed
from tests.support.server import Running, serving

KEY = "0123456789abcdef"


@pytest.fixture
def page(server: Running) -> Iterator[Page]:
    """Yield a browser page that can reach only this server."""
    with browsing(server.url) as page:
        yield page


def test_image_can_be_classified_on_the_page(
    server: Running, page: Page, jpeg: bytes, tmp_path: Path
) -> None:
    """The page works without the internet; "Try it out" uploads an image and shows the predictions."""
    page.goto(f"{server.url}/docs")
    classify_on_page(page, jpeg, tmp_path)
    page.locator("#operations-predict-predict").get_by_role("button", name="Execute").evaluate(
        "button => button.scrollIntoView()"
    )
    photographed(page, "openapi")


def test_page_asks_for_the_api_key(jpeg: bytes, tmp_path: Path) -> None:
    """With keys configured, the page opens without one, Authorize takes it, and an image is classified."""
    with (
        serving(Settings(model="cifar10", api_keys=KEY)) as protected,
        browsing(protected.url) as page,
    ):
        page.goto(f"{protected.url}/docs")
        page.get_by_role("button", name="Authorize").click()
        dialog = page.locator(".dialog-ux")
        dialog.locator("input").fill(KEY)
        dialog.get_by_role("button", name="Apply credentials").click()
        dialog.get_by_role("button", name="Close").first.click()
        classify_on_page(page, jpeg, tmp_path)


def classify_on_page(page: Page, jpeg: bytes, tmp_path: Path) -> None:
    """Upload an image with "Try it out", and check that the page shows its predictions."""
    image = tmp_path / "image.jpg"
    image.write_bytes(jpeg)
    operation = page.locator("#operations-predict-predict")
    operation.get_by_text("Classify one image").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("input[type=file]").set_input_files(str(image))
    operation.get_by_role("button", name="Execute").click()
    response = operation.locator(".live-responses-table")
    expect(response.locator(".response-col_status").last).to_contain_text("200")
    expect(response.locator(".response-col_description").last).to_contain_text("predictions")
