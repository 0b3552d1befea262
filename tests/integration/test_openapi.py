"""The OpenAPI document: error responses and their examples."""

from collections.abc import Iterator
from typing import Any

from resnet_service.server.exception_handlers import PROBLEM_TYPES
from tests.support.http import PROBLEM_MEDIA_TYPE
from tests.support.server import Running

PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")


def operations(server: Running) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in server.client.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            yield path, operation


def test_examples_of_an_error_response_have_its_status(server: Running) -> None:
    """Each example is a problem with the status of its response, and named like its type."""
    statuses = {kind.slug: kind.status for kind in PROBLEM_TYPES.values()}
    count = 0
    for path, operation in operations(server):
        for status, response in operation["responses"].items():
            content = response.get("content", {}).get(PROBLEM_MEDIA_TYPE, {})
            for slug, example in content.get("examples", {}).items():
                count += 1
                assert example["value"]["status"] == statuses[slug] == int(status), path
                assert example["value"]["type"].endswith(f":{slug}")
    assert count > len(PROBLEM_TYPES)


def test_probes_document_only_what_they_return(server: Running) -> None:
    """The health probes need no key, so that their only error is 503."""
    for path, operation in operations(server):
        if path in PROBES:
            assert set(operation["responses"]) == {"200", "503"}, path
            assert "security" not in operation
