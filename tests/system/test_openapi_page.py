"""The OpenAPI document and its page, in a real browser without the internet."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import browsing, photographed
from tests.support.server import Running

MODEL = "/v2/models/{name}"


@pytest.fixture
def page(server: Running) -> Iterator[Page]:
    """A page of a browser that can reach this server and nothing else."""
    with browsing(server.url) as page:
        yield page


def test_an_image_can_be_classified_from_the_page(
    server: Running, page: Page, jpeg: bytes, tmp_path: Path
) -> None:
    """The page shows without the internet, and its "Try it out" uploads an image and shows the answer."""
    image = tmp_path / "image.jpg"
    image.write_bytes(jpeg)
    page.goto(f"{server.url}/")
    operation = page.locator("#operations-predict-predict")
    operation.get_by_text("Classify one image").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("input[type=file]").set_input_files(str(image))
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table")
    expect(answer.locator(".response-col_status").last).to_contain_text("200")
    expect(answer.locator(".response-col_description").last).to_contain_text("predictions")
    operation.get_by_role("button", name="Execute").evaluate("button => button.scrollIntoView()")
    photographed(page, "openapi")


def test_every_operation_is_described(server: Running) -> None:
    """Each operation has a summary, a described success, and the service's problems for its errors."""
    document = server.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/predict", "/predict/batch", "/bench", "/metrics", "/healthz", "/readyz", "/info", "/reload"),
        *("/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/ready", f"{MODEL}/infer"),
        *(f"{MODEL}/versions/{{version}}{rest}" for rest in ("", "/ready", "/infer")),
    }
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "200" in operation["responses"]
            for status, response in operation["responses"].items():
                assert response["description"], (path, status)
                if status != "200":
                    protocol = path.startswith("/v2")
                    content_type = "application/json" if protocol else "application/problem+json"
                    name = "V2Error" if protocol else "Problem"
                    schema = response["content"][content_type]["schema"]
                    assert schema == {"$ref": f"#/components/schemas/{name}"}
    assert set(document["components"]["schemas"]["Problem"]["required"]) == {
        *("type", "title", "status", "detail")
    }
