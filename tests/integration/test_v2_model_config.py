"""Triton's model configuration: the values that the service uses, as Triton's client and tools read them."""

from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.http
from google.protobuf.json_format import ParseDict
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from resnet_service.settings import Settings
from tests.support.http import files
from tests.support.server import Running, serving
from tests.support.v2 import IMAGES, INFER_PATH, SIDE, error_message, json_input, output_data


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Yield a server whose limits are not the defaults."""
    settings = Settings(
        model="cifar10", max_batch=8, max_wait_ms=1.5, streams_per_device=2, max_images_per_request=6
    )
    with serving(settings) as running:
        yield running


@pytest.fixture(scope="module")
def config(server: Running) -> Any:
    """Return the configuration that the client reads."""
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as triton:
        config = triton.get_model_config("cifar10")
        assert triton.get_model_config("cifar10", "1") == config
        return config


def test_configuration_has_the_values_of_the_engine(server: Running, config: Any) -> None:
    """Batches, delay, streams, device, runtime and precision are those that the service runs with."""
    info = server.client.get("/info").json()
    assert config["name"] == "cifar10"
    assert config["backend"] == info["runtime"]
    assert config["platform"] == server.client.get("/v2/models/cifar10").json()["platform"]
    assert config["max_batch_size"] == 6
    largest = int(server.metric("inference_largest_batch"))
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [min(largest, 6)],
        "max_queue_delay_microseconds": 1500,
    }
    assert config["instance_group"] == [{"name": "cifar10", "kind": "KIND_CPU", "count": 2, "gpus": []}]
    assert {name: value["string_value"] for name, value in config["parameters"].items()} == {
        "precision": info["precision"],
        "device": "cpu",
        "largest_batch": str(largest),
        "max_images_per_request": "6",
    }


def test_configuration_matches_the_schema_of_triton(config: Any) -> None:
    """Triton's protobuf message accepts every field and every name of an enum."""
    message = ParseDict(config, ModelConfig())
    assert message.instance_group[0].kind == ModelInstanceGroup.KIND_CPU
    assert message.version_policy.latest.num_versions == 1
    assert message.dynamic_batching.max_queue_delay_microseconds == 1500


def test_inputs_and_outputs_are_those_of_the_metadata_without_the_batch(server: Running, config: Any) -> None:
    """`dims` is `shape` without its first length; one string, which has no other, is [1]."""
    metadata = server.client.get("/v2/models/cifar10").json()
    types = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}
    for part in ("input", "output"):
        assert [(one["name"], one["data_type"], one["dims"]) for one in config[part]] == [
            (one["name"], types[one["datatype"]], one["shape"][1:] or [1]) for one in metadata[f"{part}s"]
        ]
    assert {one["name"]: (one["format"], one["dims"]) for one in config["input"]} == {
        "image": ("FORMAT_NONE", [1]),
        "pixels": ("FORMAT_NHWC", [SIDE, SIDE, 3]),
        "input": ("FORMAT_NCHW", [3, SIDE, SIDE]),
    }
    assert all(one["optional"] for one in config["input"])


def test_request_may_have_as_many_images_as_the_configuration_says(server: Running, config: Any) -> None:
    """What a tool builds from `max_batch_size` and `dims` is accepted; one more image is not."""
    size = config["max_batch_size"]
    shape = [size, *config["input"][0]["dims"]]
    data = json_input()["data"] * (size // len(IMAGES))
    response = server.client.post(INFER_PATH, json={"inputs": [json_input(shape=shape, data=data)]})
    assert len(output_data(response)["label"]) == size * 5
    too_many = json_input(shape=[size + 1], data=[*data, data[0]])
    error_message(server.client.post(INFER_PATH, json={"inputs": [too_many]}), 413)


def test_perf_analyzer_finds_a_stateless_model_with_one_response(config: Any) -> None:
    """It takes a model for a sequence, an ensemble or a stream if these fields exist."""
    assert not {"sequence_batching", "ensemble_scheduling", "model_transaction_policy"} & config.keys()


def test_unknown_parameter_of_the_query_is_rejected(server: Running) -> None:
    """As for the metadata."""
    for path in ("/v2/models/cifar10/config", "/v2/models/cifar10/stats", "/v2/models/stats"):
        assert "unknown parameter 'x'" in error_message(server.client.get(path, params={"x": 1}), 422)
    assert server.client.post("/predict", files=files(IMAGES[0])).status_code == 200
