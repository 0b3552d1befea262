"""Faults of the model, the device and the decoding threads, injected into a running service."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

from resnet_service.errors import DeviceOutOfMemoryError
from resnet_service.images import Crop, decode_image
from resnet_service.runtimes import TopKResult
from resnet_service.settings import Settings
from tests.support.images import encode, make_image
from tests.support.sandbox import sandbox_processes, slow_image, wait_for
from tests.support.server import Running, in_this_process, serving

Run = Callable[[Sequence[Crop], int], TopKResult]

OUTCOMES = ("ok", "invalid", "rejected", "failed", "expired", "cancelled")


@contextmanager
def faulty_device(server: Running, wrap: Callable[[Run], Run]) -> Iterator[None]:
    """Replace the `run` method of the server's device by `wrap(run)` until the end of the block."""
    runtime = server.runtime
    run = runtime.run
    runtime.run = wrap(run)  # type: ignore[assignment]
    try:
        yield
    finally:
        runtime.run = run  # type: ignore[method-assign]


def predict(server: Running, image: bytes) -> int:
    return server.client.post("/predict", files={"file": image}).status_code


def count_outcomes(server: Running) -> dict[str, float]:
    return {name: server.metric("inference_images_total", outcome=name) for name in OUTCOMES}


def test_failed_batch_does_not_affect_the_next_request(server: Running, jpeg: bytes) -> None:
    """If the model fails once, that request gets 500 and the next ones get 200."""

    def fail_once(run: Run) -> Run:
        errors = [RuntimeError("once")]

        def faulty_run(crops: Sequence[Crop], k: int) -> TopKResult:
            if errors:
                raise errors.pop()
            return run(crops, k)

        return faulty_run

    with faulty_device(server, fail_once):
        assert [predict(server, jpeg) for _ in range(3)] == [500, 200, 200]


def test_failing_model_returns_500_and_recovers(server: Running, jpeg: bytes) -> None:
    """While the model fails, each request gets 500 and is counted; afterwards the service works again."""

    def fail_always(_: Run) -> Run:
        def faulty_run(_: Sequence[Crop], __: int) -> NoReturn:
            raise RuntimeError("always")

        return faulty_run

    before = count_outcomes(server)
    with faulty_device(server, fail_always):
        assert [predict(server, jpeg) for _ in range(20)] == [500] * 20
        assert server.client.get("/healthz").status_code == 200
    assert count_outcomes(server)["failed"] - before["failed"] == 20
    assert predict(server, jpeg) == 200


def test_only_the_image_that_causes_a_failure_gets_an_error(server: Running, jpeg: bytes) -> None:
    """In a request with 32 images, one of which makes the model fail, the other 31 are classified."""
    bad_image = encode(make_image(seed=7), "PNG")
    bad_crop = decode_image(bad_image, server.engines.current.model.preprocessing)

    def fail_for_bad_crop(run: Run) -> Run:
        def faulty_run(crops: Sequence[Crop], k: int) -> TopKResult:
            if any((crop == bad_crop).all() for crop in crops):
                raise RuntimeError("bad crop")
            return run(crops, k)

        return faulty_run

    parts = [("file", bad_image if number == 13 else jpeg) for number in range(32)]
    with faulty_device(server, fail_for_bad_crop):
        results = server.client.post("/predict/batch", files=parts).json()["results"]
    assert [index for index, result in enumerate(results) if "error" in result] == [13]
    assert "inference failed for this image" in str(results[13]["error"])


def test_out_of_memory_shrinks_batches_and_fails_no_request(jpeg: bytes) -> None:
    """If batches do not fit the device, they are halved until they do, and all images are classified."""

    def limit_to_four(run: Run) -> Run:
        def faulty_run(crops: Sequence[Crop], k: int) -> TopKResult:
            if len(crops) > 4:
                raise DeviceOutOfMemoryError("out of memory")
            return run(crops, k)

        return faulty_run

    with serving(Settings(model="cifar10")) as server, faulty_device(server, limit_to_four):
        for _ in range(2):
            response = server.client.post("/predict/batch", files=[("file", jpeg)] * 32)
            assert not [result for result in response.json()["results"] if "error" in result]
        assert 2 <= server.metric("inference_largest_batch") <= 4


@in_this_process
@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), MemoryError(), RecursionError()])
def test_decoding_threads_survive_any_exception(
    server: Running, jpeg: bytes, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """An exception while an image is decoded fails that request only; threads and process continue."""
    threads = server.service.settings.decode_threads or 4

    def fail(*_: Any) -> NoReturn:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("resnet_service.inference.image_decoder.decode_jpeg", fail)
        assert [predict(server, jpeg) for _ in range(2 * threads)] == [500] * 2 * threads
    assert predict(server, jpeg) == 200


def test_crash_and_endless_decode_in_the_sandbox_cost_one_request_each() -> None:
    """They get 422 and 413, or 429 if the system ends the decoder, and the next image is classified."""
    png = encode(make_image(), "PNG")
    slow = slow_image(1000)
    with serving(Settings(model="cifar10", sandbox_processes=1, sandbox_timeout_s=5)) as server:
        others = set(sandbox_processes())
        for number, status in ((signal.SIGSEGV, 422), (signal.SIGKILL, 429)):
            assert predict(server, png) == 200
            [process] = set(sandbox_processes()) - others
            used_s = process.cpu_times().user
            with ThreadPoolExecutor(1) as thread:
                response = thread.submit(predict, server, slow)
                wait_for(lambda: process.cpu_times().user > used_s + 0.1)  # noqa: B023
                process.send_signal(number)
                assert response.result() == status
        assert predict(server, slow) == 413
        assert predict(server, png) == 200
        restarts = [
            server.metric("inference_sandbox_restarts_total", reason=reason)
            for reason in ("crashed", "killed", "timeout")
        ]
        assert restarts == [1, 1, 1]
