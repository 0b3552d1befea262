"""The routes for operators on a real server: probes, /info, /bench, /metrics, ids and error bodies."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route

from resnet_service.models import load_model
from resnet_service.server.app import create_app, create_management_app
from resnet_service.server.listener import bind_sockets
from resnet_service.server.run import management_server
from tests.support.http import PROBLEM_MEDIA_TYPE, assert_problem, files
from tests.support.server import DEFAULT_WORKERS, Running, in_this_process


def test_probes_succeed_on_a_ready_service(server: Running) -> None:
    """A service that has been warmed up is alive and ready."""
    assert server.client.get("/healthz").json() == {"status": "ok"}
    assert server.client.get("/readyz").json() == {"status": "ready"}


def test_api_page_loads_nothing_from_other_hosts(server: Running) -> None:
    """Its scripts and styles are in a package."""
    response = server.client.get("/docs")
    assert response.status_code == 200
    assert "https://" not in response.text
    assert "swagger-ui" in response.text


def get_paths(app: FastAPI) -> list[str]:
    """Return the paths of all GET routes of an application, with their parameters filled in."""
    documented = {path for path, operations in app.openapi()["paths"].items() if "get" in operations}
    others = {
        route.path for route in app.routes if isinstance(route, Route) and "GET" in (route.methods or ())
    }
    return [path.format(name="cifar10", version=1) for path in sorted(documented | others)]


def check_head(client: httpx.Client, path: str) -> None:
    """Check that HEAD gets the status and the headers of GET, no body, and leaves the connection in step."""
    query = "?batch_sizes=1&iterations=1" if path == "/bench" else ""
    head, get = client.head(path + query), client.get(path + query)
    assert head.status_code == get.status_code < 400, path
    assert head.headers.get("content-type") == get.headers.get("content-type")
    assert head.headers.keys() == get.headers.keys()
    assert head.content == b""
    assert client.get("/healthz").json() == {"status": "ok"}


def test_head_gets_the_headers_of_get_on_every_route(server: Running) -> None:
    """HAProxy, `wget --spider` and `curl -I` check with HEAD."""
    paths = get_paths(create_app(server.service))
    assert {"/openapi.json", "/v2/models/cifar10/versions/1/ready", "/metrics"} <= set(paths)
    pages = ["/", "/page/app.js", "/page/samples/dog.jpg", "/docs", "/static-offline-docs/swagger-ui.css"]
    for path in [*paths, *pages]:
        check_head(server.client, path)


def test_head_gets_the_headers_of_get_on_the_management_port(server: Running) -> None:
    """The routes of the management port handle HEAD as well."""
    sockets = bind_sockets("127.0.0.1", 0)
    management = management_server(server.service, sockets)
    management.start()
    try:
        host, port = sockets[0].getsockname()
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=30) as client:
            paths = get_paths(create_management_app(server.service))
            assert set(paths) == {"/healthz", "/readyz", "/metrics"}
            for path in paths:
                check_head(client, path)
    finally:
        management.stop()


@in_this_process
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_unexpected_error_has_request_id(
    server: Running, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The response to a request that failed with an unexpected exception has the id of its traceback."""

    async def fail() -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(server.service.backend, "info", fail)
    response = server.client.request(method, "/info", headers={"X-Request-ID": "client-id"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "client-id"


def test_head_is_not_allowed_where_get_is_not(server: Running) -> None:
    """/predict accepts POST only."""
    assert server.client.head("/predict").status_code == 405


def test_path_with_another_slash_is_404_and_no_redirect(server: Running) -> None:
    """A redirect would lead out of the prefix of a proxy, and lose a body that is a stream."""
    paths = [*get_paths(create_app(server.service)), "/predict", "/reload", "/v2/models/cifar10/infer"]
    for path in [*paths, "/static-offline-docs"]:
        assert server.client.post(f"{path}/", content=b"x").status_code in (404, 405), path
        response = server.client.get(f"{path}/")
        assert (response.status_code, response.headers.get("location")) == (404, None), path


def test_info_describes_the_service(server: Running) -> None:
    """/info has the model, the device, the versions, the machine and the limits."""
    info = server.client.get("/info").json()
    assert info["model"] == "cifar10"
    assert info["labels"] == len(load_model("cifar10").labels)
    assert info["hardware"]["cores"] >= 1
    assert info["limits"]["max_upload_bytes"] == 20_000_000
    assert {"torch", "torchvision"} <= set(info["versions"])


def test_bench_measures_the_requested_batch_sizes(server: Running) -> None:
    """/bench returns one row per requested batch size, with consistent figures."""
    rows = server.client.get("/bench", params={"batch_sizes": "1,4,8", "iterations": 3}).json()["rows"]
    assert [row["batch_size"] for row in rows] == [1, 4, 8]
    for row in rows:
        assert row["iterations"] == 3
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["mean_ms"] * 1e3)


def test_bench_has_default_batch_sizes(server: Running) -> None:
    """Without batch sizes, /bench measures 1, 4, 8, 16 and 32."""
    rows = server.client.get("/bench", params={"iterations": 1}).json()["rows"]
    assert [row["batch_size"] for row in rows] == [1, 4, 8, 16, 32]


def test_bench_during_another_one_is_409(server: Running) -> None:
    """Only one benchmark can run at a time; the first is not affected by the second."""
    with ThreadPoolExecutor(1) as pool, server.runtime.held():
        first = pool.submit(server.client.get, "/bench?batch_sizes=1&iterations=1")
        assert server.runtime.begun.acquire(timeout=30)
        assert_problem(server.client.get("/bench"), 409, "conflict")
        server.runtime.release()
        assert first.result().status_code == 200


@pytest.mark.parametrize("query", ["batch_sizes=0", "batch_sizes=a", "batch_sizes=33", "batch_sizes=1,,2"])
def test_invalid_batch_sizes_are_422(server: Running, query: str) -> None:
    """/bench accepts comma-separated integers from 1 to the maximum batch size."""
    assert_problem(server.client.get(f"/bench?{query}"), 422, "invalid-request")


@pytest.mark.parametrize("size", ["0", "33", "100000", "9" * 5000], ids=["0", "33", "100000", "long"])
def test_batch_size_out_of_range_is_named_as_such(server: Running, size: str) -> None:
    """It is an integer, and the error does not say otherwise."""
    detail = assert_problem(server.client.get(f"/bench?batch_sizes=1,{size}"), 422, "invalid-request")
    assert "batch_sizes must be from 1 to 32" in detail


def test_bench_over_the_image_limit_is_422(server: Running) -> None:
    """A benchmark of more images than the limit is rejected before it starts."""
    response = server.client.get("/bench?batch_sizes=32&iterations=1000")
    assert "limit" in assert_problem(response, 422, "invalid-request")


def test_safe_request_ids_are_kept_and_unsafe_ones_replaced(server: Running) -> None:
    """X-Request-ID is returned unchanged only if it is safe to log."""
    response = server.client.get("/healthz", headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    response = server.client.get("/healthz", headers={"x-request-id": 'a"b\tc' + "x" * 500})
    assert len(response.headers["x-request-id"]) == 16


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("GET", "/nothing", 404)])
def test_unknown_paths_and_methods_return_a_problem(
    server: Running, method: str, path: str, status: int
) -> None:
    """Errors of the web framework have the same body format as all other errors."""
    response = server.client.request(method, path)
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    assert response.json()["status"] == response.status_code == status


def test_metrics_have_the_documented_names(server: Running, jpeg: bytes) -> None:
    """The metrics that dashboards use exist with their labels, and a request is counted once."""
    before = server.metric("inference_images_total", outcome="ok")
    server.client.post("/predict", files=files(jpeg))
    assert server.metric("inference_images_total", outcome="ok") == before + 1
    assert server.metric("inference_request_seconds_count", route="/predict", method="POST", status="200") > 0
    for stage in ("read", "decode", "queue", "device"):
        assert server.metric("inference_stage_seconds_count", stage=stage) > 0
    assert server.metric("inference_ready") == 1
    assert server.metric("inference_model_info", model="cifar10", device="cpu") == 1
    text = server.client.get("/metrics").text
    for name in (
        "inference_queue_depth",
        "inference_in_flight",
        "inference_rejected_total",
        "inference_device_streams",
        "inference_device_memory_bytes",
        "process_resident_memory_bytes",
        "python_info",
    ):
        assert f"# TYPE {name.removesuffix('_total')}" in text


@pytest.mark.skipif(DEFAULT_WORKERS > 0, reason="the metrics of several processes have no exemplars")
def test_trace_id_is_an_exemplar_of_the_request_duration(server: Running, jpeg: bytes) -> None:
    """OpenMetrics has the trace id of `traceparent` as an exemplar; the text format has none."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    server.client.post("/predict", files=files(jpeg), headers=headers)
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    text = server.client.get("/metrics", headers=accept).text
    assert re.search(f'inference_request_seconds_bucket.*route="/predict".*# {{trace_id="{trace}"}}', text)
    assert trace not in server.client.get("/metrics").text


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", "x/y;;=", "\u00e9"])
def test_metrics_with_an_invalid_accept_header_are_text(server: Running, accept: str) -> None:
    """An Accept header that cannot be parsed selects the text format."""
    response = server.client.get("/metrics", headers={b"accept": accept.encode("latin-1")})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")


def test_every_operation_is_described(server: Running) -> None:
    """Each operation has a summary, described responses, and the body format of errors."""
    model = "/v2/models/{name}"
    document = server.client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        *("/predict", "/predict/batch", "/bench", "/metrics", "/healthz", "/readyz"),
        *("/info", "/labels", "/reload", "/embed", "/explain"),
        *("/v2", "/v2/health/live", "/v2/health/ready", model, f"{model}/ready", f"{model}/infer"),
        *(f"{model}/{rest}" for rest in ("config", "stats")),
        *(f"{model}/versions/{{version}}{rest}" for rest in ("", "/ready", "/infer", "/config", "/stats")),
        *("/v2/models/stats", "/v2/repository/index"),
        *(f"/v2/repository/models/{{name}}/{rest}" for rest in ("load", "unload")),
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
