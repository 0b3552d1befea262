"""The memory that request bodies use: its limit, bodies that are discarded, and clients that disconnect."""

from concurrent.futures import ThreadPoolExecutor

from resnet_service.settings import Settings
from tests.support.http import connected, post
from tests.support.images import encode, make_image
from tests.support.server import Running, serving


def test_upload_memory_limit_rejects_with_429() -> None:
    """A body that exceeds the limit together with those in memory gets 429 until these are finished."""
    image = encode(make_image(), "BMP")
    settings = Settings(model="cifar10", upload_memory_mb=1.5 * len(image) / 1e6)
    with serving(settings) as server, ThreadPoolExecutor(1) as pool:
        with server.runtime.held():
            first = pool.submit(server.client.post, "/predict", files={"file": image})
            assert server.runtime.begun.acquire(timeout=30)
            assert server.metric("inference_upload_bytes") > len(image)
            second = server.client.post("/predict", files={"file": image})
            assert second.status_code == 429
            assert "memory" in second.json()["detail"]
            assert second.headers["retry-after"] == "1"
            server.runtime.release()
            assert first.result().status_code == 200
        assert server.metric("inference_upload_bytes") == 0
        assert server.client.post("/predict", files={"file": image}).status_code == 200


def test_bulk_requests_have_half_of_the_upload_memory() -> None:
    """Beside a first image, a second bulk image is rejected and an interactive one is not; alone, it fits."""
    image = encode(make_image(), "BMP")
    settings = Settings(model="cifar10", upload_memory_mb=2.5 * len(image) / 1e6)
    bulk = "/predict?priority=bulk"
    with serving(settings) as server, ThreadPoolExecutor(2) as pool:
        with server.runtime.held():
            first = pool.submit(server.client.post, "/predict", files={"file": image})
            assert server.runtime.begun.acquire(timeout=30)
            rejected = server.client.post(bulk, files={"file": image})
            assert (rejected.status_code, "memory" in rejected.json()["detail"]) == (429, True)
            second = pool.submit(server.client.post, "/predict", files={"file": image})
            server.wait_for(lambda: server.metric("inference_queue_depth") == 1)
            server.runtime.release()
            assert first.result().status_code == second.result().status_code == 200
        large = encode(make_image(100, 60), "BMP")  # more than half of the memory
        assert 1.25 * len(image) < len(large) < 2.4 * len(image)
        assert server.client.post(bulk, files={"file": large}).status_code == 200


def test_rest_of_too_large_body_does_not_use_upload_memory() -> None:
    """A body over its limit gets 413, and the rest of it is discarded without using upload memory."""
    settings = Settings(model="cifar10", max_upload_mb=0.05, upload_memory_mb=0.5)
    with serving(settings) as server, connected(server.url) as client:
        client.send(
            b"POST /predict HTTP/1.1\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(100):
            client.send(b"2710\r\n" + bytes(10_000) + b"\r\n")
        client.send(b"0\r\n\r\n")
        assert client.status() == 413
        server.wait_for(lambda: server.metric("inference_upload_bytes") == 0)
        assert server.metric("inference_rejected_total", reason="memory") == 0


def test_body_of_get_request_does_not_use_upload_memory(server: Running) -> None:
    """The body of a GET request is discarded while the request is processed."""
    with server.runtime.held(), connected(server.url) as client:
        client.send(b"GET /bench?iterations=1&batch_sizes=1 HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n")
        assert server.runtime.begun.acquire(timeout=30)
        client.send(bytes(5_000_000))
        assert server.metric("inference_upload_bytes") == 0
        server.runtime.release()
        assert client.answer()[0] == 200


def test_disconnect_during_upload_counts_as_499_and_frees_memory(server: Running, jpeg: bytes) -> None:
    """A client that disconnects after half an image is counted with status 499."""
    labels = {"route": "/predict", "status": "499"}
    before = server.metric("inference_request_seconds_count", **labels)
    with connected(server.url) as client:
        client.send(post(jpeg)[: -len(jpeg) // 2])
        server.wait_for(lambda: server.metric("inference_upload_bytes") > 0)
    server.wait_for(lambda: server.metric("inference_request_seconds_count", **labels) == before + 1)
    assert server.metric("inference_upload_bytes") == 0
