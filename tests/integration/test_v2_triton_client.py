"""The Open Inference Protocol with NVIDIA's client, tritonclient, against a real server."""

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from tests.support.http import files
from tests.support.server import Running
from tests.support.v2 import CROPS, IMAGES, INPUTS

Predictions = list[list[dict[str, Any]]]
"""The predictions of each image, best first."""


def triton_input(name: str, values: npt.NDArray[Any], binary: bool = True) -> Any:
    """Return an input of Triton's client; images in JSON are base64."""
    if name == "image" and not binary:
        encoded = [base64.b64encode(image) for image in values.flat]
        values = np.array(encoded, object).reshape(values.shape)
    tensor = tritonclient.http.InferInput(name, list(values.shape), INPUTS[name][0])
    return tensor.set_data_from_numpy(values, binary_data=binary)


@pytest.fixture
def triton(server: Running) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def expected(server: Running) -> Predictions:
    """Return the response of /predict for each of the images, with all classes."""
    responses = [server.client.post("/predict?top_k=10", files=files(image)) for image in IMAGES]
    return [response.json()["predictions"] for response in responses]


def check_outputs(result: Any, expected: Predictions, top_k: int = 5) -> None:
    """Compare all outputs with /predict; batches of different sizes round differently."""
    assert result.as_numpy("class_id").dtype == np.int64
    assert result.as_numpy("probability").dtype == np.float32
    by_class = result.as_numpy("probabilities")
    assert by_class.sum(axis=1) == pytest.approx(1, abs=1e-5)
    for row, predictions in enumerate(expected):
        top = predictions[:top_k]
        assert result.as_numpy("class_id")[row].tolist() == [one["class_id"] for one in top]
        labels = [one["label"] for one in top]
        received = result.as_numpy("label")[row].tolist()
        assert received in (labels, [label.encode() for label in labels])  # from JSON, from binary
        probabilities = [one["probability"] for one in top]
        assert result.as_numpy("probability")[row] == pytest.approx(probabilities, abs=1e-3)
        assert by_class[row, [one["class_id"] for one in predictions]] == pytest.approx(
            [one["probability"] for one in predictions], abs=1e-3
        )


def test_client_reads_metadata_and_health(triton: Any) -> None:
    """The client reads liveness, readiness, and the metadata of server and model."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("cifar10")
    assert triton.is_model_ready("cifar10", "1")
    assert not triton.is_model_ready("cifar10", "2")
    assert triton.get_server_metadata()["extensions"] == [
        *("binary_tensor_data", "classification", "model_configuration", "model_repository"),
        *("schedule_policy", "statistics"),
    ]
    metadata = triton.get_model_metadata("cifar10", "1")
    assert metadata == triton.get_model_metadata("cifar10")
    assert (metadata["name"], metadata["versions"]) == ("cifar10", ["1"])
    inputs = {one["name"]: (one["datatype"], one["shape"]) for one in metadata["inputs"]}
    assert inputs == {name: (kind, [-1, *values.shape[1:]]) for name, (kind, values) in INPUTS.items()}
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["outputs"]] == [
        ("probabilities", "FP32", [-1, 10]),
        ("class_id", "INT64", [-1, -1]),
        ("label", "BYTES", [-1, -1]),
        ("probability", "FP32", [-1, -1]),
        ("embedding", "FP32", [-1, 512]),
    ]


@pytest.mark.parametrize("binary_outputs", [True, False])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", INPUTS)
def test_inference_agrees_with_predict(
    triton: Any, expected: Predictions, name: str, binary: bool, binary_outputs: bool
) -> None:
    """Each input, in binary and in JSON, gets the same classes as /predict for the same images."""
    names = ("class_id", "probabilities", "label", "probability")
    outputs = [tritonclient.http.InferRequestedOutput(one, binary_data=binary_outputs) for one in names]
    inputs = [triton_input(name, INPUTS[name][1], binary)]
    result = triton.infer("cifar10", inputs, model_version="1", outputs=outputs, request_id="abc")
    assert result.get_response()["id"] == "abc"
    assert [one["name"] for one in result.get_response()["outputs"]] == list(names)
    check_outputs(result, expected)


def test_asynchronous_requests_get_their_own_results(triton: Any, expected: Predictions) -> None:
    """Concurrent requests of the client get all outputs by default."""
    requests = [triton.async_infer("cifar10", [triton_input(name, INPUTS[name][1])]) for name in INPUTS]
    for request in requests:
        check_outputs(request.get_result(), expected)


def test_asyncio_client_gets_same_results(server: Running, expected: Predictions) -> None:
    """The client for asyncio gets the same results."""

    async def infer_all() -> list[Any]:
        url = server.url.removeprefix("http://")
        async with tritonclient.http.aio.InferenceServerClient(url) as client:
            assert await client.is_model_ready("cifar10")
            inputs = [[triton_input(name, values)] for name, (_, values) in INPUTS.items()]
            return await asyncio.gather(*(client.infer("cifar10", one) for one in inputs))

    for result in asyncio.run(infer_all()):
        check_outputs(result, expected)


@pytest.mark.parametrize(("class_count", "received"), [(2, 2), (1000, 10)])
def test_classification_returns_top_classes_as_text(triton: Any, class_count: int, received: int) -> None:
    """Triton's classification extension returns at most as many classes as the model has."""
    outputs = [
        tritonclient.http.InferRequestedOutput("probabilities", class_count=class_count),
        tritonclient.http.InferRequestedOutput("label", binary_data=False),
        tritonclient.http.InferRequestedOutput("class_id"),
        tritonclient.http.InferRequestedOutput("probability"),
    ]
    inputs = [triton_input("pixels", CROPS)]
    result = triton.infer("cifar10", inputs, outputs=outputs, parameters={"top_k": received})
    texts = result.as_numpy("probabilities")
    assert texts.shape == result.as_numpy("label").shape == (3, received)
    for text, label, index, probability in zip(
        *(result.as_numpy(name).flat for name in ("probabilities", "label", "class_id", "probability")),
        strict=True,
    ):
        assert text.decode() == f"{probability:f}:{index}:{label}"


@pytest.mark.parametrize("binary", [True, False])
def test_images_may_have_a_second_dimension(triton: Any, expected: Predictions, binary: bool) -> None:
    """Images may have the shape [N, 1], as clients of models with a batch dimension send them."""
    column = np.array(IMAGES, object).reshape(3, 1)
    check_outputs(triton.infer("cifar10", [triton_input("image", column, binary)]), expected)


def test_compressed_request_is_rejected_with_415(triton: Any) -> None:
    """A gzip body gets 415 with a message that the client shows."""
    inputs = [triton_input("pixels", CROPS)]
    with pytest.raises(InferenceServerException, match="gzip") as error:
        triton.infer("cifar10", inputs, request_compression_algorithm="gzip")
    assert error.value.status() == "415"
