"""Triton's configuration, statistics and repository over gRPC are those of REST, for NVIDIA's client."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf.json_format import ParseDict
from pydantic import SecretStr
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from resnet_service.inference.engine import Engine
from resnet_service.models.repository import VersionConfig
from resnet_service.settings import Settings
from tests.support.server import Running, in_this_process, serving
from tests.support.v2 import INPUTS

USER, ADMIN = "predictions-0123456789", "administration-0123456789"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Yield a server with a port for gRPC, and a key of each kind."""
    keys = SecretStr(f"{USER} predict metrics,{ADMIN} admin predict")
    with serving(Settings(model="cifar10", api_keys=keys), grpc=True) as running:
        yield running


@pytest.fixture
def triton(server: Running) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


@pytest.fixture
def rest(server: Running) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def key(value: str) -> dict[str, str]:
    return {"x-api-key": value}


def test_configuration_is_that_of_rest(triton: Any, rest: Any) -> None:
    """All fields have the values of the JSON, in the messages of Triton."""
    expected = ParseDict(rest.get_model_config("cifar10", headers=key(USER)), model_config_pb2.ModelConfig())
    assert len(expected.input) == 3
    for version in ("", "1"):
        assert triton.get_model_config("cifar10", version, headers=key(USER)).config == expected


def test_statistics_are_those_of_rest_and_count_grpc_requests(triton: Any, rest: Any) -> None:
    """Two requests with three images each and one that fails are counted once."""
    name, values = "pixels", INPUTS["pixels"][1]
    tensor = tritonclient.grpc.InferInput(name, list(values.shape), INPUTS[name][0]).set_data_from_numpy(
        values
    )
    before = triton.get_inference_statistics("cifar10", headers=key(USER)).model_stats[0]
    for _ in range(2):
        triton.infer("cifar10", [tensor], headers=key(USER))
    wrong = tritonclient.grpc.InferInput("nothing", list(values.shape), "UINT8").set_data_from_numpy(values)
    with pytest.raises(InferenceServerException, match="unknown input"):
        triton.infer("cifar10", [wrong], headers=key(USER))
    after = triton.get_inference_statistics("cifar10", "1", headers=key(USER)).model_stats[0]
    assert after.inference_count - before.inference_count == 6
    for kind, count in (("success", 2), ("fail", 1)):
        old, new = getattr(before.inference_stats, kind), getattr(after.inference_stats, kind)
        assert (new.count - old.count, new.ns > old.ns) == (count, True)
    expected = rest.get_inference_statistics(headers=key(USER))
    assert triton.get_inference_statistics(headers=key(USER)) == ParseDict(
        expected, service_pb2.ModelStatisticsResponse()
    )


def test_index_is_that_of_rest(triton: Any, rest: Any) -> None:
    """The only model is ready."""
    [model] = triton.get_model_repository_index(headers=key(USER)).models
    [expected] = rest.get_model_repository_index(headers=key(USER))
    assert (model.name, model.version, model.state, model.reason) == (
        *(expected["name"], expected["version"]),
        *(expected["state"], expected["reason"]),
    )


def test_load_reloads_the_model_with_an_admin_key(server: Running, triton: Any) -> None:
    """Afterwards another engine serves requests; a key for predictions gets PERMISSION_DENIED."""
    before = server.engines.current
    with pytest.raises(InferenceServerException, match="does not have the scope 'admin'"):
        triton.load_model("cifar10", headers=key(USER))
    assert server.engines.current is before
    triton.load_model("cifar10", headers=key(ADMIN))
    assert server.engines.current is not before
    assert triton.is_model_ready("cifar10", headers=key(USER))


@in_this_process
def test_load_goes_on_when_its_client_has_gone(server: Running, triton: Any) -> None:
    """A client whose deadline passes does not cancel the load; another load is a conflict until its end."""
    engines, before, load = server.engines, server.engines.current, server.engines.load_engine
    gate = threading.Event()

    def load_slowly(version: VersionConfig) -> Engine:
        assert gate.wait(30)
        return load(version)

    engines.load_engine = load_slowly
    try:
        with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
            triton.load_model("cifar10", headers=key(ADMIN), client_timeout=0.5)
        with pytest.raises(InferenceServerException, match="a load or reload is running"):
            triton.load_model("cifar10", headers=key(ADMIN))
        gate.set()
        server.wait_for(lambda: engines.current is not before)
    finally:
        gate.set()
        engines.load_engine = load


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("ModelConfig", service_pb2.ModelConfigRequest(name="other"), "NOT_FOUND"),
        ("ModelConfig", service_pb2.ModelConfigRequest(name="cifar10", version="2"), "NOT_FOUND"),
        ("ModelStatistics", service_pb2.ModelStatisticsRequest(name="other"), "NOT_FOUND"),
        ("RepositoryIndex", service_pb2.RepositoryIndexRequest(repository_name="/etc"), "INVALID_ARGUMENT"),
        ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="other"), "NOT_FOUND"),
        (
            "RepositoryModelLoad",
            service_pb2.RepositoryModelLoadRequest(repository_name="/etc", model_name="cifar10"),
            "INVALID_ARGUMENT",
        ),
        (
            "RepositoryModelUnload",
            service_pb2.RepositoryModelUnloadRequest(model_name="cifar10"),
            "ABORTED",
        ),
        ("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name="other"), "NOT_FOUND"),
    ],
)
def test_requests_that_cannot_be_met_have_a_code(
    server: Running, method: str, request_: Any, code: str
) -> None:
    """Unknown models and repositories are named; the only model of the service cannot be unloaded."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
        with pytest.raises(grpc.RpcError) as raised:
            call(request_, metadata=[("x-api-key", ADMIN)])
    assert raised.value.code().name == code


def test_load_with_a_configuration_is_rejected(triton: Any) -> None:
    """A client cannot choose what is loaded."""
    with pytest.raises(InferenceServerException, match="parameters are not supported"):
        triton.load_model("cifar10", headers=key(ADMIN), config='{"max_batch_size": 4}')
