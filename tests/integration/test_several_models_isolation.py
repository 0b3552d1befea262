"""Several models beside each other: a busy one, a load during the start, and one while a call is received."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from resnet_service.runtimes import Runtime
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings
from tests.support.batching import run_pending_tasks
from tests.support.http import files
from tests.support.images import encode, make_image
from tests.support.repository import (
    ADMIN,
    Repository,
    answered,
    infer_rpc,
    load,
    runtime_of,
    unload,
    write_version,
)
from tests.support.rpc import to_protobuf
from tests.support.server import GatedRuntime, in_this_process, only_once, serving
from tests.support.v2 import json_input

pytestmark = only_once


@in_this_process
@pytest.mark.parametrize("operation", ["load", "unload"])
def test_change_during_the_start_waits_for_the_warm_up(tmp_path: Path, operation: str) -> None:
    """The service becomes ready, although the engine that is warmed up first is closed."""
    Repository(tmp_path).restore()
    runtimes: list[GatedRuntime] = []

    def gated(runtime: Runtime) -> GatedRuntime:
        runtimes.append(GatedRuntime(runtime))
        return runtimes[-1]

    state = build_app_state(
        Settings(model="auto", model_repository=tmp_path, streams_per_device=1, workers=0), gated
    )

    async def change() -> tuple[str, ...]:
        backend = state.backend
        with runtimes[0].held():
            backend.start()
            assert await asyncio.to_thread(runtimes[0].begun.acquire, timeout=30)
            changing = asyncio.create_task(getattr(backend, operation)("fruits"))
            await run_pending_tasks()
        await changing
        await backend.wait_until_warm()
        await backend.check_ready()
        names = backend.models.names
        await state.close()
        return names

    assert asyncio.run(change()) == (("pets",) if operation == "unload" else ("fruits", "pets"))


@pytest.mark.parametrize("over", ["HTTP", "gRPC"])
@pytest.mark.parametrize("workers", [0, 2])
def test_saturated_model_does_not_delay_another(tmp_path: Path, workers: int, over: str) -> None:
    """While one device is held, and its requests fill its queue, those of other models have their results."""
    Repository(tmp_path).restore()
    image = encode(make_image(), "BMP")
    settings = Settings(
        model="auto",
        model_repository=tmp_path,
        workers=workers,
        max_concurrency=8,
        upload_memory_mb=40 * len(image) / 1e6,
    )
    with serving(settings, grpc=True) as server, ExitStack() as stack:
        pool, others_pool = (stack.enter_context(ThreadPoolExecutor(threads)) for threads in (100, 4))
        triton = stack.enter_context(tritonclient.grpc.InferenceServerClient(server.grpc_url))

        def send(name: str) -> str:
            if over == "gRPC":
                return infer_rpc(triton, name, images=[image])
            with httpx.Client(base_url=server.url, timeout=60) as client:
                return answered(client.post("/predict", params={"model": name}, files=files(image)))

        with runtime_of(server, "pets").held():
            waiting = [pool.submit(send, "pets") for _ in range(100)]
            assert runtime_of(server, "pets").begun.acquire(timeout=30)
            if over == "HTTP":  # bodies are read only once their model can decode them
                server.wait_for(lambda: server.metric("inference_requests_waiting", model="pets") > 80)
            else:
                server.wait_for(lambda: sum(future.done() for future in waiting) > 70)
            others = others_pool.map(send, ["fruits"] * 40)
            assert list(others) == ["fruits-2"] * 40
        for future in waiting:
            with suppress(InferenceServerException):  # its own model has too little memory
                assert future.result() == "pets-1"


@in_this_process
def test_call_is_answered_by_the_model_that_it_names(tmp_path: Path) -> None:
    """If models change while its message is on its way, it is not answered by another one, and not lost."""
    write_version(tmp_path, "fruits", 1)
    settings = Settings(model="auto", model_repository=tmp_path, api_keys=f"{ADMIN} admin predict", workers=0)
    with serving(settings, grpc=True) as server, grpc.insecure_channel(server.grpc_url) as channel:
        backend = server.service.backend
        assert isinstance(backend, LocalBackend)
        admit, admitted, go_on = backend.admit, threading.Semaphore(0), threading.Event()

        def admit_and_tell(*arguments: Any) -> Any:
            admitted.release()
            return admit(*arguments)

        def send_later(name: str) -> Iterator[bytes]:
            message = to_protobuf({"inputs": [json_input()]})
            message.model_name = name
            assert go_on.wait(30)
            yield message.SerializeToString()

        backend.admit = admit_and_tell
        infer: Any = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        headers = [("x-api-key", ADMIN)]
        calls = {name: infer.future(send_later(name), metadata=headers) for name in ("fruits", "birds")}
        for _ in calls:
            assert admitted.acquire(timeout=30)
        write_version(tmp_path, "birds", 1)
        assert load(server, "birds").status_code == 200
        assert unload(server, "fruits").status_code == 200
        go_on.set()
        response = service_pb2.ModelInferResponse.FromString(calls["fruits"].result())
        assert response.model_name == "fruits"
        error = calls["birds"].exception()
        assert isinstance(error, grpc.RpcError)
        assert error.code() == grpc.StatusCode.NOT_FOUND
