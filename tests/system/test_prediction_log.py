"""From a prediction log in an object store to a trained model, with the processes that an operator runs."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem

from tests.support.commands import run_command
from tests.support.images import encode, make_image
from tests.support.processes import environment, rejected, started, until

IMAGES: Final = 24
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Start an S3 server with a bucket `logs`, with credentials in the environment; the query of its URIs."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        filesystem, _ = FileSystem.from_uri(f"s3://logs{query}&allow_bucket_creation=true")
        filesystem.create_dir("logs")
        yield query
    server.stop()


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_writes_the_log_which_can_then_be_trained_on(
    store: str, tmp_path: Path, workers: int
) -> None:
    """All predictions are in the store long before the interval has passed, each once, with its upload."""
    uri = f"s3://logs/{workers}{store}"
    flags = ["--prediction-log", uri, "--prediction-log-images", "--workers", str(workers)]
    images = [encode(make_image(seed=seed)) for seed in range(IMAGES)]
    with started(*flags, "--prediction-log-interval-s", "1200") as (process, log, url):
        for number, image in enumerate(images):
            headers = {"X-Request-ID": f"r{number}"}
            assert httpx.post(f"{url}/predict", files={"file": image}, headers=headers).status_code == 200
        process.send_signal(signal.SIGTERM)
        until(log, "stopped")
        assert process.wait(30) == 0
    filesystem, folder = FileSystem.from_uri(uri)
    logged = pq.read_table(folder, filesystem=filesystem)
    uploads = dict(zip(logged["request_id"].to_pylist(), logged["image"].to_pylist(), strict=True))
    assert len(logged) == IMAGES
    assert uploads == {f"r{number}": image for number, image in enumerate(images)}

    classes = pa.array(["cat" if number % 2 else "dog" for number in range(IMAGES)])
    labeled = logged.append_column("true_class", classes)
    pq.write_table(labeled, f"logs/labeled-{workers}/images.parquet", filesystem=filesystem)
    data = f"s3://logs/labeled-{workers}{store}"
    train = f"train --network lenet --size 32 --batch-size 8 --epochs 1 --output {tmp_path / 'run'}"
    for arguments in ("evaluate --model cifar10", train):
        command = [*arguments.split(), "--data", data, "--json"]
        status, output = run_command(command, tmp_path, environment(**CREDENTIALS), timeout_s=120)
        assert status == 0, output
        result = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        assert result["images"] in (IMAGES, {"train": 20, "test": 4})


@pytest.mark.parametrize(
    ("is_silent", "workers"),
    [(False, 0), (True, 0), (True, 2)],
    ids=["gone", "silent", "silent, two workers"],
)
def test_store_that_ends_costs_rows_and_no_responses(is_silent: bool, workers: int) -> None:
    """The process answers, and ends within its drain timeout, although the store is gone or silent."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    filesystem, _ = FileSystem.from_uri(f"s3://key:secret@logs{query}")
    filesystem.create_dir("logs")
    uri = f"s3://key:secret@logs/log{query}"
    flags = ["--drain-timeout-s", "5", "--prediction-log-interval-s", "1200", "--workers", str(workers)]
    with ExitStack() as stack:
        process, log, url = stack.enter_context(started(*flags, RESNET_SERVICE_PREDICTION_LOG=uri))
        server.stop()
        if is_silent:
            stack.enter_context(socket.create_server((host, port)))
        image = encode(make_image())
        for _ in range(3):
            assert httpx.post(f"{url}/predict", files={"file": image}).status_code == 200
        process.send_signal(signal.SIGTERM)
        messages = []
        for event in log:
            messages.append(event)
            if event["event"] == "stopped":
                break
        assert process.wait(15) == 0
    losses = [
        event
        for event in messages
        if event["event"] in ("predictions_not_logged", "prediction_log_incomplete")
    ]
    assert sum(event["rows"] for event in losses) == 3
    assert "worker_killed" not in {event["event"] for event in messages}
    assert "secret" not in json.dumps(messages)


def test_missing_bucket_ends_the_start(store: str) -> None:
    output = rejected("--prediction-log", f"s3://nowhere/log{store}", status=3, **CREDENTIALS)
    assert "the prediction log cannot be written to s3://nowhere/log" in output
