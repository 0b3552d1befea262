"""Query parameters, form fields and parameters under /v2: accepted places, and hints for unknown names."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from resnet_service.server.app import create_management_app
from resnet_service.settings import Settings
from tests.support.http import assert_problem, files
from tests.support.server import Running, in_this_process, serving
from tests.support.v2 import INFER_PATH, error_message, json_input, output_data

KEY = "every-scope-0123456789"
PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/cifar10/ready")
MONITORING = (*PROBES, "/v2/models/cifar10/versions/1/ready", "/metrics")


@pytest.fixture(scope="module")
def admin_server() -> Iterator[Running]:
    """Yield a server with a key for all scopes, which /reload needs."""
    settings = Settings(model="cifar10", api_keys=f"{KEY} predict explain metrics bench admin")
    with serving(settings) as running:
        running.client.headers["X-API-Key"] = KEY
        yield running


def operations(server: Running) -> set[tuple[str, str]]:
    """Return the method and path of all operations, for the model cifar10."""
    paths = server.client.get("/openapi.json").json()["paths"]
    return {
        (method.upper(), path.replace("{name}", "cifar10").replace("{version}", "1"))
        for path, methods in paths.items()
        for method in methods
    }


def class_count(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    body = response.json()
    return len((body if "predictions" in body else body["results"][0])["predictions"])


# Queries


def test_every_route_rejects_an_unknown_query_parameter(admin_server: Running) -> None:
    """All routes except the probes and /metrics respond with 422 and the name of the parameter."""
    rejecting = {pair for pair in operations(admin_server) if pair[1] not in MONITORING}
    assert len(rejecting) > 9
    for method, path in rejecting:
        response = admin_server.client.request(method, f"{path}?nonsense=1&top_k=2")
        assert response.status_code == 422, path
        body = response.json()
        assert "unknown parameter 'nonsense'" in body.get("detail", body.get("error")), path
        document = admin_server.client.get("/openapi.json").json()["paths"]
        documented = path.replace("cifar10", "{name}").replace("versions/1", "versions/{version}")
        assert "422" in document[documented][method.lower()]["responses"], path


@in_this_process
def test_management_port_rejects_an_unknown_query_parameter(admin_server: Running) -> None:
    """/reload has the same query on both ports."""
    transport = httpx.ASGITransport(create_management_app(admin_server.service))

    async def responses() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            headers = {"X-API-Key": KEY}
            return [
                await client.post("/reload?model=resnet50", headers=headers),
                await client.get("/metrics?collect[]=x", headers=headers),
            ]

    reload, metrics = asyncio.run(responses())
    assert reload.status_code == 422
    assert "unknown parameter 'model'" in reload.json()["detail"]
    assert metrics.status_code == 200


@pytest.mark.parametrize("path", MONITORING)
def test_monitoring_ignores_the_query(server: Running, path: str) -> None:
    """A probe never fails because of its query, and Prometheus may add parameters to /metrics."""
    response = server.client.get(f"{path}?collect[]=x&name[]=y&top_k=nonsense")
    assert response.status_code == 200


@pytest.mark.parametrize("name", ["topk", "top-k", "TopK", "top_k_", "tok_k"])
def test_misspelled_query_parameter_gets_the_name_that_was_meant(
    server: Running, jpeg: bytes, name: str
) -> None:
    """422 with a hint, instead of the default number of classes."""
    for path in ("/predict", "/predict/batch"):
        response = server.client.post(path, params={name: 3}, files=files(jpeg))
        detail = assert_problem(response, 422, "invalid-request")
        assert detail == f"query: unknown parameter '{name}'; did you mean 'top_k'?"
    response = server.client.post(INFER_PATH, params={name: 3}, json={"inputs": [json_input()]})
    assert "did you mean 'top_k'?" in error_message(response, 422)
    bench = server.client.get("/bench", params={"batchsizes": 1})
    assert "did you mean 'batch_sizes'?" in assert_problem(bench, 422, "invalid-request")


def test_key_is_checked_before_the_query(admin_server: Running) -> None:
    """A client without a key learns nothing about the parameters of a route."""
    for method, path in (("POST", "/predict"), ("POST", "/reload"), ("GET", "/v2")):
        assert httpx.request(method, f"{admin_server.url}{path}?x=1").status_code == 401


def test_many_unknown_parameters_get_a_short_response(server: Running) -> None:
    """The response names one of them, and only the beginning of a long name."""
    query = "&".join(f"{'p' * 1000}{number}" for number in range(50))
    response = server.client.post(f"/predict?{query}")
    assert len(assert_problem(response, 422, "invalid-request")) < 200


# Forms


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_top_k_may_be_a_form_field(server: Running, jpeg: bytes, path: str) -> None:
    """Before or after the image, and together with an equal query parameter; an empty field is not set."""
    top_k = ("top_k", (None, b"3"))
    empty = ("top_k", (None, b""))
    assert class_count(server.client.post(path, files=[top_k, *files(jpeg)])) == 3
    assert class_count(server.client.post(path, files=[*files(jpeg), top_k])) == 3
    assert class_count(server.client.post(f"{path}?top_k=3", files=[*files(jpeg), top_k])) == 3
    assert class_count(server.client.post(path, files=[*files(jpeg), empty])) == 5


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "three", "11", "\xff"])
def test_form_field_is_validated_as_the_query_parameter(server: Running, jpeg: bytes, value: str) -> None:
    """Both are 422 and name top_k."""
    for arguments in ({"data": {"top_k": value}}, {"params": {"top_k": value}}):
        response = server.client.post("/predict", files=files(jpeg), **arguments)  # type: ignore[arg-type]
        assert "top_k" in assert_problem(response, 422, "invalid-request")


def test_different_values_in_query_and_form_are_422(server: Running, jpeg: bytes) -> None:
    """Neither is preferred silently."""
    response = server.client.post("/predict?top_k=2", files=files(jpeg), data={"top_k": "3"})
    assert assert_problem(response, 422, "invalid-request") == "top_k is 2 and 3 in the same request"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("topk", "did you mean 'top_k'?"),
        ("files", "did you mean 'file'?"),
        ("file[]", "did you mean 'file'?"),
        ("File", "did you mean 'file'?"),
        ("image", "expected 'file' or 'top_k' or 'priority' or 'timeout_ms'"),
        ("", "expected 'file' or 'top_k' or 'priority' or 'timeout_ms'"),
    ],
)
def test_unknown_form_field_gets_a_hint(server: Running, jpeg: bytes, name: str, advice: str) -> None:
    """422 for a field with text and for one with a file, beside an image and without one."""
    for filename in (None, "dog.jpg"):
        part = (name, (filename, jpeg))
        for parts in ([part], [*files(jpeg), part]):
            response = server.client.post("/predict", files=parts)
            detail = assert_problem(response, 422, "invalid-request")
            assert detail == f"unknown form field {name!r}; {advice}"


def test_form_fields_do_not_count_as_images(server: Running, jpeg: bytes) -> None:
    """64 images and a field are within the limit of 64 images; 65 images are not."""
    response = server.client.post("/predict/batch", files=files(*[jpeg] * 64), data={"top_k": "1"})
    assert len(response.json()["results"]) == 64
    response = server.client.post("/predict/batch", files=files(*[jpeg] * 65), data={"top_k": "1"})
    assert "64 images" in assert_problem(response, 413, "payload-too-large")


def test_form_fields_are_bounded(server: Running, jpeg: bytes) -> None:
    """A field may occur once, and has at most 100 bytes."""
    response = server.client.post("/predict", files=files(jpeg), data={"top_k": ["3", "3"]})
    assert "'top_k' twice" in assert_problem(response, 422, "invalid-request")
    response = server.client.post("/predict", files=files(jpeg), data={"top_k": "1" * 101})
    assert "100 bytes" in assert_problem(response, 413, "payload-too-large")


# Open Inference Protocol


@pytest.mark.parametrize(
    ("query", "message", "parameters"),
    [
        ("", {"parameters": {"top_k": 2}}, {}),
        ("", {}, {"top_k": 2}),
        ("", {"outputs": [{"name": "label", "parameters": {"top_k": 2}}]}, {}),
        ("?top_k=2", {}, {}),
        ("?top_k=2", {"parameters": {"top_k": 2}}, {"top_k": 2}),
    ],
    ids=["request", "input", "output", "query", "everywhere"],
)
def test_top_k_under_v2_may_be_in_several_places(
    server: Running, query: str, message: dict[str, Any], parameters: dict[str, int]
) -> None:
    """In the parameters of the request, of its input or of an output, and in the query."""
    request = {"inputs": [json_input(parameters=parameters)]} | message
    assert len(output_data(server.client.post(INFER_PATH + query, json=request))["label"]) == 3 * 2


@pytest.mark.parametrize(
    ("query", "message", "parameters", "error"),
    [
        ("", {"parameters": {"top_k": 2}}, {"top_k": 3}, "top_k is 2 and 3 in the same request"),
        ("?top_k=4", {"parameters": {"top_k": 2}}, {}, "top_k is 2 and 4 in the same request"),
        ("", {"top_k": 2}, {}, "unknown field 'top_k'; did you mean 'parameters.top_k'?"),
        ("", {"output": []}, {}, "unknown field 'output'; did you mean 'outputs'?"),
        ("", {"parameters": {"topk": 2}}, {}, "parameters: unknown parameter 'topk'; did you mean 'top_k'?"),
        (
            "",
            {"parameters": {"x": 2}},
            {},
            "unknown parameter 'x'; expected 'binary_data_output' or 'timeout' or 'top_k' or 'priority'",
        ),
        ("", {}, {"topK": 2}, "inputs.0.parameters: unknown parameter 'topK'; did you mean 'top_k'?"),
        (
            "",
            {"outputs": [{"name": "probabilities", "parameters": {"top_k": 2}}]},
            {},
            "top_k is not supported for probabilities; did you mean 'classification'?",
        ),
        (
            "",
            {"outputs": [{"name": "label", "parameters": {"classification": 2}}]},
            {},
            "did you mean 'top_k'?",
        ),
        (
            "",
            {"outputs": [{"name": "label", "top_k": 2}]},
            {},
            "outputs.0: unknown field 'top_k'; did you mean 'parameters.top_k'?",
        ),
    ],
)
def test_contradictions_and_unknown_names_under_v2_are_422(
    server: Running, query: str, message: dict[str, Any], parameters: dict[str, int], error: str
) -> None:
    """The error names the place, and what was probably meant."""
    request = {"inputs": [json_input(parameters=parameters)]} | message
    response = server.client.post(INFER_PATH + query, json=request)
    assert re.search(re.escape(error) + "$", error_message(response, 422))


def test_parameters_of_other_servers_are_ignored(server: Running) -> None:
    """Clients send those that Triton reserves, and MLServer's content type, to every server."""
    ignored: dict[str, object] = {
        "sequence_id": 7,
        "sequence_start": True,
        "sequence_end": False,
        "headers": {},
        "content_type": "np",
        "triton_enable_empty_final_response": True,
    }
    request = {
        "inputs": [json_input(parameters=ignored)],
        "outputs": [{"name": "label", "parameters": ignored}],
        "parameters": ignored | {"top_k": 1},
    }
    assert len(output_data(server.client.post(INFER_PATH, json=request))["label"]) == 3
