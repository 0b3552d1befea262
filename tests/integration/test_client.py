"""resnet_service.client against the real service and against other HTTP servers."""

import asyncio
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx
import pytest

from monitoring.local import free_port
from resnet_service.client import (
    APIError,
    AsyncClient,
    BatchPredictResponse,
    Client,
    PredictResponse,
    Problem,
    ServiceUnavailableError,
)
from resnet_service.client.retry import RetryState
from resnet_service.settings import Settings
from tests.support.images import encode, make_image
from tests.support.server import Running, serving


def test_methods_return_typed_responses(server: Running, jpeg: bytes, tmp_path: Path) -> None:
    """Bytes, a file, a batch with an invalid image, the service's description and a benchmark."""
    file = tmp_path / "image.jpg"
    file.write_bytes(jpeg)
    with Client(f"{server.url}/") as client:
        response = client.predict(jpeg, top_k=3)
        probabilities = [prediction.probability for prediction in response.predictions]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == 3
        assert client.predict(file).predictions[0].label == response.predictions[0].label
        valid, invalid = client.predict_batch([file, b"nothing"], top_k=1).results
        assert valid.filename == "image.jpg"
        assert valid.predictions is not None
        assert invalid.error is not None
        explanation = client.explain(file, label="cat")
        assert (explanation.class_id, len(explanation.heat), len(explanation.heat[0])) == (3, 4, 4)
        info = client.info()
        assert info.model == "cifar10"
        assert info.limits.max_queue_wait_s > 0
        [row] = client.bench([2], 3)
        assert (row.batch_size, row.iterations) == (2, 3)


def test_async_client_sends_requests_concurrently(server: Running, jpeg: bytes) -> None:
    """AsyncClient has the methods of Client and returns the same predictions for 20 concurrent requests."""

    async def call_all() -> set[str]:
        async with AsyncClient(server.url) as client:
            responses = await asyncio.gather(*(client.predict(jpeg, top_k=1) for _ in range(20)))
            assert len((await client.predict_batch([jpeg, jpeg])).results) == 2
            assert (await client.explain(jpeg, class_id=3)).label == "cat"
            assert (await client.info()).model == "cifar10"
            assert len(await client.bench([1], 2)) == 1
            return {response.predictions[0].label for response in responses}

    assert len(asyncio.run(call_all())) == 1


def test_model_and_version_can_be_named(server: Running, jpeg: bytes) -> None:
    """The response has both; an unknown one raises APIError with status 404."""
    with Client(server.url) as client:
        single = client.predict(jpeg, model="cifar10", version="1")
        batch = client.predict_batch([jpeg], model="cifar10", version="1")
        assert {(response.model, response.version) for response in (single, batch)} == {("cifar10", "1")}
        with pytest.raises(APIError, match="unknown version '2'") as error:
            client.predict(jpeg, version="2")
    assert error.value.status == 404


def test_rejection_raises_api_error_with_the_services_message(server: Running) -> None:
    """A text file raises APIError with status 415."""
    with Client(server.url) as client, pytest.raises(APIError, match="not an image") as rejection:
        client.predict(b"This is not an image.")
    assert rejection.value.status == 415


def test_rejection_with_retry_after_is_retried(jpeg: bytes, settings: Settings) -> None:
    """With a full queue the first attempt gets 429; the second, after Retry-After, gets predictions."""
    settings = settings.model_copy(update={"max_queue": 1, "max_batch": 1})
    with serving(settings) as running, ThreadPoolExecutor(3) as pool, Client(running.url) as client:
        with running.runtime.held():
            first = pool.submit(client.predict, jpeg)
            assert running.runtime.begun.acquire(timeout=30)
            second = pool.submit(client.predict, jpeg)
            running.wait_for(lambda: running.metric("inference_queue_depth") == 1)
            with Client(running.url, attempts=1) as client_without_retries:
                with pytest.raises(APIError) as rejection:
                    client_without_retries.predict(jpeg)
                assert rejection.value.status == 429
            third = pool.submit(client.predict, jpeg)
            running.wait_for(lambda: running.metric("inference_rejected_total", reason="queue_full") == 2)
        labels = [future.result(60).predictions[0].label for future in (first, second, third)]
    assert len(set(labels)) == 1


@contextmanager
def http_server(
    status: int, body: bytes, headers: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a server that sends one response to every request, and the paths requested so far."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", paths
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"[1]"), (500, b"{}"), (404, b"[]")])
def test_response_of_another_program_raises_unavailable(status: int, body: bytes) -> None:
    """A response that does not have the service's format raises ServiceUnavailableError."""
    with (
        http_server(status, body) as (url, _),
        Client(url) as client,
        pytest.raises(ServiceUnavailableError, match="is not a resnet-service endpoint"),
    ):
        client.info()


def test_closed_port_raises_unavailable() -> None:
    """A port without a server raises ServiceUnavailableError after the attempts."""
    with (
        Client(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(ServiceUnavailableError, match="does not respond"),
    ):
        client.predict(encode(make_image()))


def test_persistent_503_uses_all_attempts() -> None:
    """A service that always responds with 503 gets as many requests as the client has attempts."""
    body = b'{"type": "about:blank", "title": "No", "status": 503, "detail": "not now"}'
    with http_server(503, body) as (url, paths), Client(url, attempts=3) as client:
        with pytest.raises(APIError, match="not now"):
            client.info()
        assert len(paths) == 3


def test_invalid_url_raises_unavailable() -> None:
    """A string that is not a URL raises ServiceUnavailableError."""
    with pytest.raises(ServiceUnavailableError), Client("no address") as client:
        client.info()


def test_error_message_contains_no_password() -> None:
    """The message for an unreachable URL omits its user information."""
    url = f"http://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnavailableError) as unavailable, Client(url) as client:
        client.info()
    assert "secret" not in str(unavailable.value)


def test_retry_delays_follow_retry_after_or_double() -> None:
    """Retry-After sets the delay of a rejected request; failed connections wait 0.1 s, 0.2 s and so on."""
    retry = RetryState(attempts=4, timeout_s=60)
    delays = [
        retry.next_delay(outcome)
        for outcome in (
            httpx.ConnectError("refused"),
            httpx.Response(429, headers={"Retry-After": "7"}),
            httpx.Response(503),
            httpx.Response(503),
        )
    ]
    assert delays[:3] == [pytest.approx(delay_s * 1.05, rel=0.05) for delay_s in (0.1, 7, 0.4)]
    assert delays[3] is None


@pytest.mark.parametrize("outcome", [httpx.Response(200), httpx.Response(500), httpx.InvalidURL("no URL")])
def test_final_outcomes_are_not_retried(outcome: httpx.Response | httpx.InvalidURL) -> None:
    """Success, a server error and an invalid URL end the call."""
    assert RetryState(attempts=3, timeout_s=60).next_delay(outcome) is None


def test_retry_after_beyond_the_timeout_ends_the_call() -> None:
    """A Retry-After that is longer than the remaining time raises APIError after one request."""
    body = b'{"type": "about:blank", "title": "Busy", "status": 429, "detail": "come back later"}'
    with http_server(429, body, {"Retry-After": "3600"}) as (url, paths), Client(url, attempts=3) as client:
        with pytest.raises(APIError, match="come back later"):
            client.info()
        assert len(paths) == 1


def test_client_does_not_import_torch() -> None:
    """Importing the client takes no PyTorch, which is slow to import and may not be installed."""
    code = "import sys, resnet_service.client; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_openapi_names_for_generated_clients_are_stable(server: Running) -> None:
    """Operation ids, the method names of generated clients, do not change; examples match their schemas."""
    document = server.client.get("/openapi.json").json()
    names = {
        operation["operationId"] for methods in document["paths"].values() for operation in methods.values()
    }
    assert {name for name in names if not name.startswith("v2_")} == {
        *("predict", "predict_batch", "embed", "explain", "bench"),
        *("labels", "info", "healthz", "readyz", "metrics", "reload"),
    }
    for model in (PredictResponse, BatchPredictResponse, Problem):
        model.model_validate(document["components"]["schemas"][model.__name__]["example"])
