"""resnet_service.client against the real service, and against what is none."""

import asyncio
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitoring.local import free_port
from resnet_service.client import APIError, AsyncClient, Client, ServiceUnavailableError
from resnet_service.schemas import BatchPredictResponse, PredictResponse, Problem
from resnet_service.settings import Settings
from tests.support.images import encode, make_image
from tests.support.server import Running, serving


def test_images_and_answers_have_types(server: Running, jpeg: bytes, tmp_path: Path) -> None:
    """One image, a file, several with one that is broken, what is served, and a measurement."""
    file = tmp_path / "image.jpg"
    file.write_bytes(jpeg)
    with Client(f"{server.url}/") as client:
        answer = client.predict(jpeg, top_k=3)
        assert [ranked.probability for ranked in answer.predictions] == sorted(
            (ranked.probability for ranked in answer.predictions), reverse=True
        )
        assert len(answer.predictions) == 3
        assert client.predict(file).predictions[0].label == answer.predictions[0].label
        good, bad = client.predict_batch([file, b"nothing"], top_k=1).results
        assert good.filename == "image.jpg"
        assert good.predictions is not None
        assert bad.error is not None
        assert client.info()["model"] == "bundled"
        [row] = client.bench([2], 3)
        assert (row.batch_size, row.iterations) == (2, 3)


def test_without_waiting(server: Running, jpeg: bytes) -> None:
    """The asynchronous client answers many at once, with the same answers."""

    async def ask() -> set[str]:
        async with AsyncClient(server.url) as client:
            answers = await asyncio.gather(*(client.predict(jpeg, top_k=1) for _ in range(20)))
            assert len((await client.predict_batch([jpeg, jpeg])).results) == 2
            assert (await client.info())["model"] == "bundled"
            assert len(await client.bench([1], 2)) == 1
            return {answer.predictions[0].label for answer in answers}

    assert len(asyncio.run(ask())) == 1


def test_a_rejection_has_the_services_words(server: Running) -> None:
    """A text file is APIError with status 415, at once and in the words of the service."""
    with Client(server.url) as client, pytest.raises(APIError, match="not an image") as rejection:
        client.predict(b"This is not an image.")
    assert rejection.value.status == 415


def test_what_is_rejected_for_now_is_tried_again(jpeg: bytes, bundled_settings: Settings) -> None:
    """With the queue full the first attempt gets 429; after Retry-After the second is answered."""
    settings = bundled_settings.model_copy(update={"max_queue": 1, "max_batch": 1})
    with serving(settings) as running, ThreadPoolExecutor(3) as pool, Client(running.url) as client:
        with running.runtime.held():
            first = pool.submit(client.predict, jpeg)
            assert running.runtime.begun.acquire(timeout=30)
            second = pool.submit(client.predict, jpeg)
            running.wait_for(lambda: running.metric("inference_queue_depth") == 1)
            with Client(running.url, attempts=1) as hasty, pytest.raises(APIError) as rejection:
                hasty.predict(jpeg)
            assert rejection.value.status == 429
            third = pool.submit(client.predict, jpeg)
            running.wait_for(lambda: running.metric("inference_rejected_total", reason="queue_full") == 2)
        answers = [future.result(60).predictions[0].label for future in (first, second, third)]
    assert len(set(answers)) == 1


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything alike; its URL and the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{stranger.server_address[1]}", asked
        stranger.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"[1]"), (500, b"{}"), (404, b"[]")])
def test_somebody_else_is_told_apart(status: int, body: bytes) -> None:
    """An answer that is not the service's is ServiceUnavailableError, whatever it is."""
    with (
        answering(status, body) as (url, _),
        Client(url) as client,
        pytest.raises(ServiceUnavailableError, match="not resnet-service"),
    ):
        client.info()


def test_nobody_is_asked_as_often_as_was_said() -> None:
    """A port without a server, and 503 without end, use up the attempts, and no more."""
    with (
        Client(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(ServiceUnavailableError, match="not answer"),
    ):
        client.predict(encode(make_image()))
    body = b'{"type": "about:blank", "title": "No", "status": 503, "detail": "not now"}'
    with answering(503, body) as (url, asked), Client(url, attempts=3) as client:
        with pytest.raises(APIError, match="not now"):
            client.info()
        assert len(asked) == 3
    with pytest.raises(ServiceUnavailableError), Client("no address") as client:
        client.info()
    url = f"http://somebody:secret@127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnavailableError) as away, Client(url) as client:
        client.info()
    assert "secret" not in str(away.value)


def test_it_needs_no_pytorch() -> None:
    """Whoever only asks need not wait for PyTorch's import, nor have it."""
    code = "import sys, resnet_service.client; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_generated_clients_stay_the_same(server: Running) -> None:
    """The operations are called as generators have named their methods, and examples fit their schemas."""
    document = server.client.get("/openapi.json").json()
    names = {
        operation["operationId"] for methods in document["paths"].values() for operation in methods.values()
    }
    assert {name for name in names if not name.startswith("v2_")} == {
        *("predict", "predict_batch", "bench", "info", "healthz", "readyz", "metrics", "reload")
    }
    for kind in (PredictResponse, BatchPredictResponse, Problem):
        kind.model_validate(document["components"]["schemas"][kind.__name__]["example"])
