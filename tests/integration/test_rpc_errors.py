"""gRPC calls that fail: codes, deadlines, cancellation, API keys, limits, overload and drain.

test_rpc_bad_inputs.py has the requests that are invalid.
"""

import asyncio
import queue
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from resnet_service.settings import Settings
from tests.support.http import files
from tests.support.rpc import to_protobuf
from tests.support.server import DEFAULT_WORKERS, Running, in_this_process, serving
from tests.support.v2 import CROPS, IMAGES, base64_strings, binary_input, json_input

REQUEST = to_protobuf({"inputs": [json_input()]})
PIXELS = to_protobuf(binary_input("pixels", 0), CROPS.tobytes())
INFER = "/inference.GRPCInferenceService/ModelInfer"
KEY = "key-of-predict-0123"
METRICS_KEY = "key-of-metrics-0123"
SLOW_KEY = "key-with-a-rate-0123"
BULK_KEY = "key-of-bulk-01234567"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Yield a server with a port for gRPC and small messages."""
    with serving(Settings(model="cifar10", max_upload_mb=0.2, read_timeout_s=1), grpc=True) as running:
        yield running


@pytest.fixture
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_url) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def failure(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return the error of a call, which must fail."""
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, **options)
    return error.value


@contextmanager
def held_back(message: bytes) -> Iterator[Iterator[bytes]]:
    """Yield the messages of a call, one, which is not sent before the end of the block."""
    released: queue.Queue[bytes] = queue.Queue()
    try:
        yield (released.get(timeout=60) for _ in range(1))
    finally:
        released.put(message)


def trailing(error: Any) -> dict[str, str]:
    return dict(error.trailing_metadata() or ())


@pytest.mark.parametrize(
    ("image", "reason"), [(b"text", "format"), (b"\xff\xd8\xff", "damaged"), (b"", "empty")]
)
def test_invalid_image_fails_its_request(server: Running, stub: Any, image: bytes, reason: str) -> None:
    """The error names the index of the image, and its images are counted as over REST."""
    invalid = server.metric("inference_images_total", outcome="invalid")
    data = base64_strings(IMAGES[0], image, IMAGES[1])
    error = failure(stub.ModelInfer, to_protobuf({"inputs": [json_input(data=data)]}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("image[1]: ")
    assert reason in error.details()
    assert trailing(error)["grpc-retry-pushback-ms"] == "-1"
    assert trailing(error)["x-request-id"]
    assert "retry-after" not in trailing(error)
    assert server.metric("inference_images_total", outcome="invalid") == invalid + 1


def test_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    """A method that the service does not have is gRPC's error for it."""
    error = failure(channel.unary_unary("/inference.GRPCInferenceService/TraceSetting"), b"")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_call_without_a_message_is_invalid(server: Running, channel: grpc.Channel) -> None:
    """A client that ends its stream without a message gets an error, and the call counts as one image."""
    invalid = server.metric("inference_images_total", outcome="invalid")
    error = failure(channel.stream_unary(INFER), iter(()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.metric("inference_images_total", outcome="invalid") == invalid + 1


def test_compressed_message_is_rejected(stub: Any) -> None:
    """A compressed message, which could become a large one, is not decompressed."""
    error = failure(stub.ModelInfer, REQUEST, compression=grpc.Compression.Gzip)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_message_that_does_not_arrive_in_time_is_rejected(channel: grpc.Channel) -> None:
    """A client that starts a call and sends no message gets an error after the time to read a body."""
    with held_back(b"") as messages:
        error = failure(channel.stream_unary(INFER), messages)
    assert error.code() is grpc.StatusCode.ABORTED
    assert "not received within 1 s" in error.details()


@in_this_process
def test_unexpected_error_is_internal_and_logged(
    server: Running, stub: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A defect is INTERNAL without details; its traceback is in the log."""
    failed = server.metric("inference_images_total", outcome="failed")
    monkeypatch.setattr(
        "resnet_service.server.rpc.servicer.measure_request", lambda _: [].pop(), raising=True
    )
    error = failure(stub.ModelInfer, REQUEST)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error, see the log"
    log = "".join(capfd.readouterr())
    assert "grpc_call_failed" in log
    assert "IndexError" in log
    assert server.metric("inference_images_total", outcome="failed") == failed + 1


def test_model_failure_is_internal_without_details(server: Running, stub: Any) -> None:
    """A failing batch is INTERNAL with the index of an image, and the next request is served."""
    server.runtime.error = RuntimeError("secret detail")
    try:
        error = failure(stub.ModelInfer, PIXELS)
    finally:
        server.runtime.error = None
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details().startswith("pixels[")
    assert "secret" not in error.details()
    assert stub.ModelInfer(PIXELS).model_name == "cifar10"


# Deadlines and cancellation


def test_deadline_of_the_client_ends_the_request(server: Running, stub: Any) -> None:
    """A request that the device does not finish before the client's deadline is not run."""
    expired = server.metric("inference_images_total", outcome="expired")
    images = server.metric("inference_batch_size_sum")
    with ThreadPoolExecutor(1) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        error = failure(stub.ModelInfer, PIXELS, timeout=0.5)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        server.wait_for(lambda: server.metric("inference_images_total", outcome="expired") == expired + 3)
        server.wait_for(lambda: server.metric("inference_queue_depth") == 0)
        server.runtime.release()
        assert first.result().status_code == 200
    assert server.metric("inference_batch_size_sum") - images == 1


def test_longer_deadline_does_not_extend_the_timeout() -> None:
    """The service's own timeout applies to clients with a longer deadline."""
    with (
        serving(Settings(model="cifar10", request_timeout_s=0.3), grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
        running.runtime.held(),
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        error = failure(stub.ModelInfer, PIXELS, timeout=60)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert trailing(error)["x-request-id"]  # by the service, not by gRPC
        assert running.metric("inference_images_total", outcome="expired") == 3


def test_cancelled_call_stops_its_work(server: Running, stub: Any) -> None:
    """The queued images of a call that its client cancels never reach the device."""
    cancelled = server.metric("inference_images_total", outcome="cancelled")
    images = server.metric("inference_batch_size_sum")
    with ThreadPoolExecutor(1) as pool, server.runtime.held():
        first = pool.submit(server.client.post, "/predict", files=files(IMAGES[0]))
        assert server.runtime.begun.acquire(timeout=30)
        call = stub.ModelInfer.future(PIXELS)
        server.wait_for(lambda: server.metric("inference_queue_depth") == 3)
        call.cancel()
        server.wait_for(lambda: server.metric("inference_images_total", outcome="cancelled") == cancelled + 3)
        server.runtime.release()
        assert first.result().status_code == 200
    assert server.metric("inference_batch_size_sum") - images == 1
    assert server.metric("inference_upload_bytes") == 0


# API keys


@pytest.fixture(scope="module")
def protected() -> Iterator[tuple[Running, Any]]:
    """Yield a server with API keys, and a client of it."""
    keys = f"{KEY} predict, {METRICS_KEY} metrics, {SLOW_KEY} predict 1/s name=slow, {BULK_KEY} priority=bulk"
    with (
        serving(Settings(model="cifar10", api_keys=keys), grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
    ):
        yield running, service_pb2_grpc.GRPCInferenceServiceStub(channel)


PROTECTED: dict[str, tuple[str, Any]] = {
    "infer": ("ModelInfer", REQUEST),
    "server metadata": ("ServerMetadata", service_pb2.ServerMetadataRequest()),
    "model metadata": ("ModelMetadata", service_pb2.ModelMetadataRequest(name="cifar10")),
    "model ready": ("ModelReady", service_pb2.ModelReadyRequest(name="cifar10")),
}


@pytest.mark.parametrize(("method", "request_message"), PROTECTED.values(), ids=PROTECTED)
def test_methods_need_an_api_key_with_the_scope(
    protected: tuple[Running, Any], method: str, request_message: Any
) -> None:
    """Both kinds of metadata are accepted; without a key, or with one of another scope, the call fails."""
    call = getattr(protected[1], method)
    metadata: tuple[tuple[str, str], ...]
    for metadata in ((("authorization", f"Bearer {KEY}"),), (("x-api-key", KEY),)):
        assert call(request_message, metadata=metadata)
    for metadata in ((), (("x-api-key", f"{KEY}x"),), (("authorization", f"Basic {KEY}"),)):
        error = failure(call, request_message, metadata=metadata)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert KEY not in error.details()
    error = failure(call, request_message, metadata=(("x-api-key", METRICS_KEY),))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


def test_priority_is_limited_by_the_api_key(protected: tuple[Running, Any]) -> None:
    """The parameter `priority` has the values of Triton; a key for bulk requests may not raise it."""
    stub = protected[1]
    highest, lower, usual = (
        to_protobuf({"inputs": [json_input()], "parameters": {"priority": priority}})
        for priority in (1, 2, 0)
    )
    metadata = (("x-api-key", BULK_KEY),)
    for request in (lower, usual):
        assert stub.ModelInfer(request, metadata=metadata).model_name == "cifar10"
    error = failure(stub.ModelInfer, highest, metadata=metadata)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert stub.ModelInfer(highest, metadata=(("x-api-key", KEY),)).model_name == "cifar10"


def test_health_needs_no_api_key(protected: tuple[Running, Any]) -> None:
    """Liveness, readiness and the health service are public, as the probes of HTTP."""
    running, stub = protected
    assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
    assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
    with grpc.insecure_channel(running.grpc_url) as channel:
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_rate_limit_has_retry_after_and_holds_over_both_protocols(protected: tuple[Running, Any]) -> None:
    """A key with a rate gets RESOURCE_EXHAUSTED beyond it, whichever protocol it has used before."""
    running, stub = protected
    response = running.client.get("/v2", headers={"X-API-Key": SLOW_KEY})
    assert response.status_code in (200, 429)
    error = failure(stub.ModelInfer, REQUEST, metadata=(("x-api-key", SLOW_KEY),))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(trailing(error)["retry-after"]) >= 1
    assert 0 <= int(trailing(error)["grpc-retry-pushback-ms"]) <= 1000
    counted = running.client.get("/metrics", headers={"X-API-Key": METRICS_KEY}).text
    assert re.search(r'inference_rejected_total\{model="",reason="rate_limit",version=""\} 1\.0', counted)


# Overload and drain


def test_full_queue_is_resource_exhausted_with_retry_after() -> None:
    """A request that does not fit into the queue is rejected at once, and says when to try again."""
    settings = Settings(model="cifar10", max_queue=2, max_batch=2)
    with (
        serving(settings, grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
        running.runtime.held(),
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(to_protobuf({"inputs": [json_input(shape=[1], data=[_base64()])]}))
        assert running.runtime.begun.acquire(timeout=30)
        second = stub.ModelInfer.future(REQUEST)
        running.wait_for(lambda: running.metric("inference_queue_depth") == 2)
        error = failure(stub.ModelInfer, REQUEST)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(trailing(error)["retry-after"]) >= 1
        assert running.metric("inference_rejected_total", reason="queue_full") == 1
        running.runtime.release()
        assert first.result().model_name == second.result().model_name == "cifar10"


def _base64() -> str:
    return base64_strings(IMAGES[0])[0]


@in_this_process
def test_full_upload_memory_is_resource_exhausted() -> None:
    """Messages in memory count as uploads, of both protocols together."""
    settings = Settings(model="cifar10", upload_memory_mb=0.02, max_upload_mb=0.02)
    with (
        serving(settings, grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
        running.runtime.held(),
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(PIXELS)  # 9 KB
        assert running.runtime.begun.acquire(timeout=30)
        second = stub.ModelInfer.future(PIXELS)
        running.wait_for(lambda: running.metric("inference_upload_bytes") > 2 * CROPS.nbytes)
        error = failure(stub.ModelInfer, PIXELS)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "upload memory" in error.details()
        assert trailing(error)["retry-after"] == "1"
        running.runtime.release()
        assert first.result().model_name == second.result().model_name == "cifar10"
        assert running.metric("inference_upload_bytes") == 0


def test_message_is_not_received_before_its_request_may_run() -> None:
    """With a limit of one request, the message of the next stays with its client until the first ends."""
    settings = Settings(model="cifar10", max_concurrency=1)
    values = np.tile(CROPS, (20, 1, 1, 1))
    large = to_protobuf(
        {"inputs": [json_input("pixels", shape=list(values.shape), data=None)]}, values.tobytes()
    )
    with (
        serving(settings, grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
        running.runtime.held(),
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        first = stub.ModelInfer.future(PIXELS)
        assert running.runtime.begun.acquire(timeout=30)
        before = running.metric("inference_upload_bytes")
        second = stub.ModelInfer.future(large)
        running.wait_for(lambda: running.metric("inference_requests_waiting") == 1)
        assert running.metric("inference_upload_bytes") == before
        running.runtime.release()
        assert first.result().model_name == second.result().model_name == "cifar10"


def test_messages_that_could_exceed_the_upload_memory_are_received_one_after_the_other() -> None:
    """While two clients have places for messages of the maximum size and send nothing, the next one waits."""
    settings = Settings(model="cifar10", upload_memory_mb=0.02, max_upload_mb=0.02, read_timeout_s=1)
    with (
        serving(settings, grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
        held_back(b"") as messages,
        held_back(b"") as more_messages,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        infer: Any = channel.stream_unary(INFER)
        silent = [infer.future(messages), infer.future(more_messages)]
        assert stub.ServerLive(service_pb2.ServerLiveRequest()).live  # the other calls have arrived before
        assert stub.ModelInfer(PIXELS).model_name == "cifar10"
        assert {call.code() for call in silent} == {grpc.StatusCode.ABORTED}


@in_this_process
def test_draining_server_is_not_serving() -> None:
    """Health and readiness become negative with /readyz, and a stream of `Watch` sees it."""
    with (
        serving(Settings(model="cifar10"), grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running.engines.current.begin_drain()
        assert health.Check(health_pb2.HealthCheckRequest()).status == (
            health_pb2.HealthCheckResponse.NOT_SERVING
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
        assert not stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        assert not stub.ModelReady(service_pb2.ModelReadyRequest(name="cifar10")).ready


def test_accepted_calls_finish_when_the_server_stops() -> None:
    """A call that waits for the device gets its result, and streams of `Watch` do not delay the end."""
    with (
        serving(Settings(model="cifar10"), grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
        running.runtime.held(),
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        call = stub.ModelInfer.future(PIXELS)
        assert running.runtime.begun.acquire(timeout=30)
        running.server.should_exit = True
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        running.runtime.release()
        assert call.result(timeout=30).model_name == "cifar10"
        running.thread.join(10 if not DEFAULT_WORKERS else 20)
        assert not running.thread.is_alive()
        assert next(watch, None) is None


def test_connections_are_limited() -> None:
    """A connection beyond the limit is closed, and the others are served."""
    with serving(Settings(model="cifar10", max_connections=4, workers=0), grpc=True) as running:

        async def connect() -> list[grpc.StatusCode]:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channels = [grpc.aio.insecure_channel(running.grpc_url, options=options) for _ in range(6)]
            codes = []
            for channel in channels:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                try:
                    await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)
                    codes.append(grpc.StatusCode.OK)
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code())
            for channel in channels:
                await channel.close()
            return codes

        codes = asyncio.run(connect())
        assert codes == [grpc.StatusCode.OK] * 4 + [grpc.StatusCode.UNAVAILABLE] * 2
