"""The parameter `timeout` of the Open Inference Protocol: it bounds the deadline of a request."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from resnet_service.batching import MicroBatcher
from resnet_service.settings import Settings
from tests.support.server import Running, serving
from tests.support.v2 import CROPS, IMAGES, INFER_PATH, error_message, json_input, output_data

LIMIT_S = 20.0
INPUTS = [("image", "BYTES", np.array(IMAGES[:1], object)), ("pixels", "UINT8", CROPS[:1])]


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "two workers"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Yield a server of each kind."""
    with serving(Settings(model="cifar10", workers=request.param, request_timeout_s=LIMIT_S)) as running:
        yield running


@pytest.fixture
def triton(server: Running) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def remaining(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets, for each image that is queued, the seconds until its deadline."""
    seconds: list[float] = []
    enqueue = MicroBatcher.enqueue

    def record(batcher: Any, item: Any, deadline: float, *lane: Any) -> Any:
        seconds.append(deadline - time.monotonic())
        return enqueue(batcher, item, deadline, *lane)

    monkeypatch.setattr(MicroBatcher, "enqueue", record)
    return seconds


def infer(triton: Any, name: str, datatype: str, values: Any, **options: Any) -> Any:
    tensor = tritonclient.http.InferInput(name, list(values.shape), datatype)
    return triton.infer("cifar10", [tensor.set_data_from_numpy(values)], **options)


@pytest.mark.parametrize(("name", "datatype", "values"), INPUTS)
def test_request_that_exceeds_its_timeout_gets_504(
    server: Running, triton: Any, name: str, datatype: str, values: Any
) -> None:
    """In the time that the client asks for, not in that of the service."""
    with server.runtime.held():
        started = time.perf_counter()
        with pytest.raises(InferenceServerException, match="deadline exceeded") as error:
            infer(triton, name, datatype, values, timeout=200_000)
        assert error.value.status() == "504"
        assert 0.15 < time.perf_counter() - started < LIMIT_S / 2
    assert infer(triton, name, datatype, values).as_numpy("label").shape == (1, 5)


@pytest.mark.parametrize(
    ("timeout", "longest_s"),
    [(5_000_000, 5), (None, LIMIT_S), (0, LIMIT_S), (60_000_000, LIMIT_S), (2**64 - 1, LIMIT_S)],
)
def test_queue_gets_the_shorter_deadline(
    triton: Any, remaining: list[float], timeout: int | None, longest_s: float
) -> None:
    """That of the client or that of the service; 0 is no limit of the client."""
    infer(triton, *INPUTS[0], timeout=timeout)
    [left_s] = remaining
    assert longest_s - 4 < left_s <= longest_s


def test_deadline_reaches_the_queue_with_a_reservation(remaining: list[float]) -> None:
    """HTTP workers ask the main process for a reservation if `max_queue` is set."""
    settings = Settings(model="cifar10", workers=2, request_timeout_s=LIMIT_S, max_queue=10)
    with serving(settings) as server:
        message = {"inputs": [json_input()], "parameters": {"timeout": 5_000_000}}
        output_data(server.client.post(INFER_PATH, json=message))
    assert len(remaining) == len(IMAGES)
    assert all(1 < left_s <= 5 for left_s in remaining)


@pytest.mark.parametrize(
    "timeout",
    [-1, 1.5, 2**64, pytest.param(10**400, id="400 digits"), "1000000", True, [], 1e300],
)
def test_invalid_timeout_is_rejected_with_the_unit(server: Running, timeout: Any) -> None:
    """It must be a whole number of microseconds."""
    response = server.client.post(
        INFER_PATH, json={"inputs": [json_input()], "parameters": {"timeout": timeout}}
    )
    message = error_message(response, 422)
    assert message.startswith("parameters.timeout: must be a whole number of microseconds")


def test_misspelled_timeout_gets_the_name_that_was_meant(server: Running) -> None:
    """`timeout_ms` would otherwise have no effect."""
    message = {"inputs": [json_input()], "parameters": {"timeout_ms": 5}}
    assert "did you mean 'timeout'?" in error_message(server.client.post(INFER_PATH, json=message), 422)
