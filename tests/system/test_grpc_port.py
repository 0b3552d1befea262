"""The gRPC port of `resnet-service serve`: start, drain, and a port that is not available."""

import queue
import signal
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from monitoring.local import free_port
from tests.support.processes import rejected, started, until
from tests.support.rpc import to_protobuf
from tests.support.v2 import json_input

INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sigterm_finishes_accepted_calls(workers: str) -> None:
    """A call whose message arrives during the drain gets its response, and the process ends with status 0."""
    port, messages = str(free_port()), queue.Queue[bytes]()

    def request() -> Iterator[bytes]:
        yield messages.get(timeout=60)

    with (
        started("--grpc-port", port, "--workers", workers) as (process, log, _),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        live = service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive
        assert live(service_pb2.ServerLiveRequest(), wait_for_ready=True, timeout=30).live
        infer: Any = channel.stream_unary(INFER)
        call = infer.future(request())
        assert live(service_pb2.ServerLiveRequest()).live  # on the same connection: the call has arrived
        process.send_signal(signal.SIGTERM)
        until(log, "draining")
        messages.put(to_protobuf({"inputs": [json_input()]}).SerializeToString())
        response = service_pb2.ModelInferResponse.FromString(call.result(timeout=30))
        assert response.model_name == "cifar10"
        assert process.wait(30) == 0


def test_port_in_use_exits_with_status_1() -> None:
    """The message names the setting, also if the other program shares the port, or is the service itself."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        message = rejected("--model", "nonsense", "--port", "0", "--grpc-port", port, status=1)
    assert f"127.0.0.1:{port}: the address is already in use" in message
    assert "--grpc-port 0" in message
    port = str(free_port())
    assert "--grpc-port 0" in rejected("--port", port, "--grpc-port", port, status=1)


def test_port_of_a_running_service_is_not_shared() -> None:
    """A second service cannot get connections of the first, although its HTTP workers share the port."""
    port = str(free_port())
    with started("--grpc-port", port, "--workers", "2"):
        assert "--grpc-port 0" in rejected("--port", "0", "--grpc-port", port, status=1)
