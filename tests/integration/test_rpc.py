"""The Open Inference Protocol over gRPC with NVIDIA's client, tritonclient, against a real server."""

import asyncio
import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.rpc import to_protobuf
from tests.support.server import Running, serving
from tests.support.v2 import CROPS, IMAGES, INPUTS, json_input

OUTPUTS = ("probabilities", "class_id", "label", "probability")
SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Yield a server with a port for gRPC."""
    with serving(Settings(model="cifar10"), grpc=True) as running:
        yield running


@pytest.fixture
def triton(server: Running) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


@pytest.fixture
def stub(server: Running) -> Iterator[Any]:
    """Yield the generated client of the published protocol."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def rpc_input(name: str, values: npt.NDArray[Any]) -> Any:
    tensor = tritonclient.grpc.InferInput(name, list(values.shape), INPUTS[name][0])
    return tensor.set_data_from_numpy(values)


def over_rest(server: Running, name: str, values: npt.NDArray[Any], **options: Any) -> Any:
    """Return the result of the same request over REST, in binary."""
    tensor = tritonclient.http.InferInput(name, list(values.shape), INPUTS[name][0])
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        return client.infer("cifar10", [tensor.set_data_from_numpy(values)], **options)


def check_equal(result: Any, expected: Any) -> None:
    """Compare all outputs; batches of different sizes round differently."""
    for name in OUTPUTS:
        actual, values = result.as_numpy(name), expected.as_numpy(name)
        if values.dtype.kind == "f":
            assert actual.dtype == values.dtype
            assert actual == pytest.approx(values, abs=1e-3)
        else:
            assert actual.tolist() == values.tolist()


def test_client_reads_metadata_and_health(server: Running, triton: Any) -> None:
    """Liveness, readiness and metadata are those of REST."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("cifar10")
    assert triton.is_model_ready("cifar10", "1")
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as rest:
        server_metadata, rest_metadata = triton.get_server_metadata(as_json=True), rest.get_server_metadata()
        expected = rest.get_model_metadata("cifar10")
    assert server_metadata == rest_metadata
    metadata = triton.get_model_metadata("cifar10", "1")
    assert metadata == triton.get_model_metadata("cifar10")
    assert (metadata.name, list(metadata.versions)) == (expected["name"], expected["versions"])
    assert metadata.platform == expected["platform"]
    for kind in ("inputs", "outputs"):
        tensors = [(one.name, one.datatype, list(one.shape)) for one in getattr(metadata, kind)]
        assert tensors == [(one["name"], one["datatype"], one["shape"]) for one in expected[kind]]


@pytest.mark.parametrize("name", INPUTS)
def test_each_input_gets_the_result_of_rest(server: Running, triton: Any, name: str) -> None:
    """Image files, pixels and normalized planes get the same outputs as over REST."""
    outputs = [tritonclient.grpc.InferRequestedOutput(one) for one in OUTPUTS]
    values = INPUTS[name][1]
    result = triton.infer("cifar10", [rpc_input(name, values)], outputs=outputs, request_id="abc")
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("abc", "cifar10", "1")
    assert [one.name for one in response.outputs] == list(OUTPUTS)
    check_equal(result, over_rest(server, name, values))


def test_photographs_get_the_result_of_rest(server: Running, triton: Any) -> None:
    """Each photograph of the package gets the same labels and probabilities as over REST."""
    photographs = [path.read_bytes() for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    assert len(photographs) > 1
    values = np.array(photographs, object)
    check_equal(triton.infer("cifar10", [rpc_input("image", values)]), over_rest(server, "image", values))


@pytest.mark.parametrize("name", INPUTS)
def test_typed_contents_get_typed_contents(server: Running, stub: Any, name: str) -> None:
    """A request without raw contents gets a response without them, with the same values."""
    response = stub.ModelInfer(to_protobuf({"inputs": [json_input(name)]}))
    assert not response.raw_output_contents
    contents = {one.name: (one.shape, one.contents) for one in response.outputs}
    expected = over_rest(server, name, INPUTS[name][1])
    for output, field in zip(
        OUTPUTS, ("fp32_contents", "int64_contents", "bytes_contents", "fp32_contents"), strict=True
    ):
        shape, values = contents[output]
        actual = np.array(getattr(values, field)).reshape(shape)
        if output in ("class_id", "label"):
            assert actual.tolist() == expected.as_numpy(output).tolist()
        else:
            assert actual == pytest.approx(expected.as_numpy(output), abs=1e-3)


def test_asynchronous_requests_get_their_own_results(server: Running, triton: Any) -> None:
    """Requests with callbacks, which run at the same time, get their own results."""
    results: queue.Queue[tuple[str, Any, Any]] = queue.Queue()
    for name in INPUTS:
        triton.async_infer(
            "cifar10",
            [rpc_input(name, INPUTS[name][1])],
            callback=lambda result, error, name=name: results.put((name, result, error)),
        )
    for _ in INPUTS:
        name, result, error = results.get(timeout=30)
        assert error is None
        check_equal(result, over_rest(server, name, INPUTS[name][1]))


def test_asyncio_client_gets_the_same_results(server: Running) -> None:
    """The client for asyncio gets the results of REST, for requests that run at the same time."""

    async def infer_all() -> list[Any]:
        async with tritonclient.grpc.aio.InferenceServerClient(server.grpc_url) as client:
            assert await client.is_model_ready("cifar10")
            inputs = [[rpc_input(name, values)] for name, (_, values) in INPUTS.items()]
            return list(await asyncio.gather(*(client.infer("cifar10", one) for one in inputs)))

    for name, result in zip(INPUTS, asyncio.run(infer_all()), strict=True):
        check_equal(result, over_rest(server, name, INPUTS[name][1]))


@pytest.mark.parametrize(("class_count", "received"), [(2, 2), (1000, 10)])
def test_classification_returns_top_classes_as_text(triton: Any, class_count: int, received: int) -> None:
    """Triton's classification extension returns at most as many classes as the model has."""
    outputs = [
        tritonclient.grpc.InferRequestedOutput("probabilities", class_count=class_count),
        *(tritonclient.grpc.InferRequestedOutput(name) for name in OUTPUTS[1:]),
    ]
    inputs = [rpc_input("pixels", CROPS)]
    result = triton.infer("cifar10", inputs, outputs=outputs, parameters={"top_k": received})
    texts = result.as_numpy("probabilities")
    assert texts.shape == result.as_numpy("label").shape == (3, received)
    for text, index, label, probability in zip(
        *(result.as_numpy(name).flat for name in OUTPUTS), strict=True
    ):
        assert text.decode() == f"{probability:f}:{index}:{label.decode()}"


def test_images_may_have_a_second_dimension(server: Running, triton: Any) -> None:
    """Images may have the shape [N, 1], as clients of models with a batch dimension send them."""
    column = np.array(IMAGES, object).reshape(3, 1)
    check_equal(
        triton.infer("cifar10", [rpc_input("image", column)]), over_rest(server, "image", INPUTS["image"][1])
    )


def test_example_of_serving_guide_runs(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python code in docs/serving.md runs and prints labels."""
    page = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8")
    section = page.split("## Open Inference Protocol over gRPC")[1].split("\n## ")[0]
    [python] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "dog.jpg").write_bytes(IMAGES[0])
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(python.replace("localhost:8002", server.grpc_url), variables)
    variables["client"].close()
    assert "[[b'cat' b'frog']]" in capsys.readouterr().out


def test_health_service_reports_serving(server: Running) -> None:
    """The standard health service knows the server and its service."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            response = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_all_services(server: Running) -> None:
    """Clients such as grpcurl find the services and their messages."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = set(database.get_services())
        assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        file = database.FindFileContainingSymbol(SERVICE)
        assert [method.name for method in file.service[0].method] == [
            *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
            *("ModelConfig", "ModelStatistics", "RepositoryIndex"),
            *("RepositoryModelLoad", "RepositoryModelUnload"),
        ]


def test_reflection_can_be_switched_off() -> None:
    """Without `api_docs`, the definition is not served, and the methods are."""
    with (
        serving(Settings(model="cifar10", api_docs=False), grpc=True) as running,
        grpc.insecure_channel(running.grpc_url) as channel,
    ):
        with pytest.raises(grpc.RpcError) as error:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready


def test_request_id_is_returned_and_calls_are_counted(server: Running, stub: Any) -> None:
    """A client's request id comes back, an unsafe one is replaced, and metrics count calls and images."""
    calls = server.metric("inference_grpc_request_seconds_count", method="ModelInfer", code="OK")
    images = server.metric("inference_images_total", outcome="ok")
    stages = server.metric("inference_stage_seconds_count", stage="device")
    request = to_protobuf({"inputs": [json_input()]})
    _, call = stub.ModelInfer.with_call(request, metadata=(("x-request-id", "abc-1"),))
    trailing = dict(call.trailing_metadata())
    assert trailing["x-request-id"] == "abc-1"
    assert "device;dur=" in trailing["server-timing"]
    _, call = stub.ModelInfer.with_call(request, metadata=(("x-request-id", "a b"),))
    assert dict(call.trailing_metadata())["x-request-id"] not in ("", "a b")
    assert server.metric("inference_grpc_request_seconds_count", method="ModelInfer", code="OK") == calls + 2
    assert server.metric("inference_images_total", outcome="ok") == images + 6
    assert server.metric("inference_stage_seconds_count", stage="device") == stages + 6


@pytest.mark.parametrize("name", ["other", "x" * 1000])
def test_unknown_model_is_not_found(triton: Any, name: str) -> None:
    """A model that the server does not have is an error of each method that names one."""
    calls = {
        "is_model_ready": (),
        "get_model_metadata": (),
        "infer": ([rpc_input("pixels", CROPS)],),
    }
    for method, arguments in calls.items():
        with pytest.raises(InferenceServerException, match="the server has 'cifar10'") as error:
            getattr(triton, method)(name, *arguments)
        assert error.value.status() == "StatusCode.NOT_FOUND"
