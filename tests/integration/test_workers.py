"""HTTP workers: what happens if one ends or hangs, and the limits that hold over all of them."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2_grpc

from resnet_service.images import Preprocessing
from resnet_service.models import checkpoint
from resnet_service.settings import Settings
from tests.support.http import files
from tests.support.images import encode, make_image
from tests.support.models import CLASSIFIER, random_classifier, write_checkpoint
from tests.support.rpc import to_protobuf
from tests.support.sandbox import wait_for
from tests.support.server import Running, only_once, serving
from tests.support.v2 import json_input

pytestmark = only_once


KEY = "rate-limited-0123456789"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLORS = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Yield a server with two workers."""
    with serving(Settings(model="cifar10", workers=2, stall_timeout_s=1)) as running:
        yield running


def workers(server: Running) -> list[psutil.Process]:
    """Return the HTTP workers of a server: the processes that listen on its port."""
    port = int(server.url.rpartition(":")[2])
    found = []
    for child in psutil.Process().children():
        try:
            sockets = child.net_connections("tcp4")
        except psutil.Error:  # it has ended
            continue
        if any(connection.status == "LISTEN" and connection.laddr.port == port for connection in sockets):
            found.append(child)
    return found


def clients_of(worker: psutil.Process, server: Running, count: int, stack: ExitStack) -> list[httpx.Client]:
    """Return `count` clients whose connection the worker has accepted."""
    clients: list[httpx.Client] = []
    while len(clients) < count:
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
        response = client.get("/healthz")
        assert response.status_code == 200
        _, port = response.extensions["network_stream"].get_extra_info("client_addr")
        # Not by their number: the system's list can lack connections while others are opened and closed.
        if any(connection.raddr and connection.raddr.port == port for connection in worker.net_connections()):
            clients.append(client)
    return clients


def in_own_connection(server: Running, call: Callable[[httpx.Client], httpx.Response]) -> httpx.Response:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        return call(client)


def inference_count(server: Running) -> int:
    """Return that of Triton's statistics."""
    [model] = server.client.get("/v2/models/stats").json()["model_stats"]
    return int(model["inference_count"])


def is_whole(server: Running) -> bool:
    return server.metric("inference_ready") == 1 and len(workers(server)) == 2


def test_replaced_workers_have_the_same_grpc_port() -> None:
    """When all workers have been killed, those that replace them serve gRPC on its port."""
    with serving(Settings(model="cifar10", workers=2), grpc=True) as server:
        for victim in workers(server):
            victim.kill()
        options = [("grpc.use_local_subchannel_pool", 1)]
        for _ in range(8):  # connections, which the system divides between the workers
            with grpc.insecure_channel(server.grpc_url, options=options) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                message = to_protobuf({"inputs": [json_input()]})
                assert stub.ModelInfer(message, wait_for_ready=True, timeout=60).model_name == "cifar10"
        server.wait_for(lambda: server.metric("inference_worker_restarts_total") == 2)


def test_killed_worker_costs_its_own_requests_only(server: Running, jpeg: bytes) -> None:
    """Those of the other worker succeed, the lost ones are counted, and no count is lost."""
    server.wait_for(lambda: is_whole(server))
    lost_before = server.metric("inference_abandoned_requests_total")
    restarts_before = server.metric("inference_worker_restarts_total")
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(16))
        victim, other = workers(server)
        lost = clients_of(victim, server, 5, stack)
        kept = clients_of(other, server, 5, stack)
        for client in (*lost, *kept):
            assert client.post("/predict", files=files(jpeg)).status_code == 200
        done = server.metric("inference_images_total", outcome="ok")
        inferences = inference_count(server)
        with server.runtime.held():
            send = [pool.submit(client.post, "/predict", files=files(jpeg)) for client in lost]
            keep = [pool.submit(client.post, "/predict", files=files(jpeg)) for client in kept]
            server.wait_for(lambda: server.metric("inference_in_flight") == 10)
            victim.kill()
            for future in send:
                with pytest.raises(httpx.TransportError):
                    future.result()
            server.runtime.release()
            assert [future.result().status_code for future in keep] == [200] * 5
        wait_for(lambda: len(workers(server)) == 2)
        status = Counter(
            in_own_connection(server, lambda client: client.post("/predict", files=files(jpeg))).status_code
            for _ in range(8)
        )
    assert status == {200: 8}
    server.wait_for(lambda: server.metric("inference_worker_restarts_total") == restarts_before + 1)
    assert server.metric("inference_abandoned_requests_total") == lost_before + 5
    assert server.metric("inference_images_total", outcome="ok") == done + 5 + 8
    assert inference_count(server) == inferences + 5 + 8
    server.wait_for(lambda: server.metric("inference_in_flight") == 0)


def test_worker_that_hangs_is_replaced(server: Running, jpeg: bytes) -> None:
    """A stopped process cannot end itself: the main process does."""
    server.wait_for(lambda: is_whole(server))
    victim, _ = workers(server)
    victim.send_signal(signal.SIGSTOP)
    wait_for(lambda: victim not in workers(server) and len(workers(server)) == 2)
    for _ in range(8):
        response = in_own_connection(server, lambda client: client.post("/predict", files=files(jpeg)))
        assert response.status_code == 200


def test_worker_that_is_told_to_end_finishes_its_requests(server: Running, jpeg: bytes) -> None:
    """SIGTERM drains a single worker, which is then replaced."""
    server.wait_for(lambda: is_whole(server))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(4))
        victim, _ = workers(server)
        clients = clients_of(victim, server, 4, stack)
        with server.runtime.held():
            sent = [pool.submit(client.post, "/predict", files=files(jpeg)) for client in clients]
            server.wait_for(lambda: server.metric("inference_in_flight") == 4)
            victim.terminate()
            server.runtime.release()
            assert [future.result().status_code for future in sent] == [200] * 4
    wait_for(lambda: victim not in workers(server) and len(workers(server)) == 2)


def test_images_of_different_requests_are_not_mixed_up(server: Running) -> None:
    """Each response belongs to its image, with both workers writing to the same memory."""
    images = [encode(Image.new("RGB", (64, 48), color), "PNG") for color in COLORS]

    def classify(number: int) -> list[float]:
        form = files(images[number % len(images)])
        response = in_own_connection(server, lambda client: client.post("/predict?top_k=10", files=form))
        by_class = {row["class_id"]: row["probability"] for row in response.json()["predictions"]}
        return [by_class[class_id] for class_id in range(10)]

    expected = [classify(number) for number in range(len(images))]
    for number, other in combinations(range(len(images)), 2):
        assert expected[number] != pytest.approx(expected[other], abs=0.01)
    with ThreadPoolExecutor(16) as pool:
        for number, probabilities in enumerate(pool.map(classify, range(400))):
            # The sizes of batches differ, and with them the last digits.
            assert probabilities == pytest.approx(expected[number % len(images)], abs=0.005)


def test_rate_of_a_key_holds_over_all_workers() -> None:
    """A bucket holds the tokens of one second, however the connections are divided among workers."""
    settings = Settings(model="cifar10", workers=2, api_keys=f"{KEY} predict 10/s")
    headers = {"Authorization": f"Bearer {KEY}"}
    with serving(settings) as server, ThreadPoolExecutor(16) as pool:
        started = time.monotonic()

        def status(_: int) -> int:
            return in_own_connection(server, lambda client: client.get("/info", headers=headers)).status_code

        statuses = Counter(pool.map(status, range(200)))
        seconds = time.monotonic() - started
    assert statuses[200] + statuses[429] == 200
    assert 10 <= statuses[200] <= 10 * seconds + 11


def test_upload_memory_is_limited_over_all_workers() -> None:
    """The bodies of one worker count for the limit of the other."""
    image = encode(make_image(), "BMP")
    settings = Settings(model="cifar10", workers=2, upload_memory_mb=1.5 * len(image) / 1e6)
    with serving(settings) as server, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        first, second = workers(server)
        [holder] = clients_of(first, server, 1, stack)
        [rejected] = clients_of(second, server, 1, stack)
        with server.runtime.held():
            held = pool.submit(holder.post, "/predict", files=files(image))
            assert server.runtime.begun.acquire(timeout=30)
            response = rejected.post("/predict", files=files(image))
            assert response.status_code == 429
            assert "memory" in response.json()["detail"]
            server.runtime.release()
            assert held.result().status_code == 200
        assert rejected.post("/predict", files=files(image)).status_code == 200


def test_reload_to_a_larger_model_loses_no_request(tmp_path: Path, jpeg: bytes) -> None:
    """The crops of the new model do not fit into the slots of the previous one."""
    path = tmp_path / "model.safetensors"
    write_checkpoint(path)
    settings = Settings(model=str(path), workers=2, api_keys=f"{KEY} admin", public_scopes="predict,metrics")
    with serving(settings) as server, ThreadPoolExecutor(8) as pool:
        assert server.client.get("/info").json()["input_size"] == 32
        labels = tuple(map(str, range(1000)))
        state = random_classifier().state_dict()
        larger = checkpoint.Checkpoint(CLASSIFIER, labels, Preprocessing(256, 224, MEAN, STD), state)
        is_reloaded = False

        def send(_: int) -> list[int]:
            statuses = []
            while not is_reloaded:
                statuses.append(server.client.post("/predict", files=files(jpeg)).status_code)
            return statuses

        clients = [pool.submit(send, number) for number in range(6)]
        checkpoint.save_checkpoint(larger, path)
        response = server.client.post("/reload", headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        is_reloaded = True
        assert response.status_code == 200, response.text
        assert {status for client in clients for status in client.result()} == {200}
        assert server.client.get("/info").json()["input_size"] == 224
        for _ in range(6):
            answer = in_own_connection(server, lambda client: client.post("/predict", files=files(jpeg)))
            assert len(answer.json()["predictions"]) == 5
