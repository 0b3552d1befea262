"""Batch inference on a real Ray cluster: results, resuming, and processes that die."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

pytest.importorskip("ray", reason="needs the extra ray")

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem

from monitoring.local import free_port
from resnet_service.batch_inference.cluster import ray_cluster
from resnet_service.batch_inference.execution import ExecutionConfig
from resnet_service.batch_inference.job import BatchJob
from resnet_service.errors import (
    ClusterError,
    DeviceUnavailableError,
    StorageError,
    UnsupportedModelError,
)
from resnet_service.images import Preprocessing, decode_image
from resnet_service.inference import classify_images, discover_inputs
from resnet_service.models import Model, load_model
from resnet_service.runtimes.selection import create_runtimes
from tests.support.batch_inference import CONFIG, assert_one_row_each, read_rows, run_job, write_photos
from tests.support.models import random_classifier

COUNT = 120
FIRST = 40
"""Images in the results that several tests start from."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a Ray cluster on this machine for all tests of this module; its address."""
    with pytest.MonkeyPatch.context() as patch:
        # With the default, on a busy machine, Ray's workers would hardly run.
        patch.setenv("RAY_worker_niceness", "0")
        with ray_cluster():
            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def cifar10() -> Model:
    return load_model("cifar10")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 120 images in folders named after classes, one of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def results(cluster: str, photos: Path, cifar10: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results for the first 40 images, computed by two actors."""
    assert cluster
    folder = tmp_path_factory.mktemp("results") / "first"
    config = replace(CONFIG, actors=2, top_k=2)
    assert run_job(photos, folder, cifar10, config=config, limit=FIRST).images == FIRST
    return folder


def test_rows_have_the_embeddings_of_the_images(
    cluster: str, photos: Path, cifar10: Model, tmp_path: Path
) -> None:
    """The column has lists of a fixed size with the runtime's embeddings, and null for the broken image."""
    assert cluster
    config = replace(CONFIG, with_embeddings=True)
    run_job(photos, tmp_path / "results", cifar10, config=config, limit=COUNT // 3 + 1)  # cats, a broken dog
    [runtime] = create_runtimes(cifar10, [torch.device("cpu")], precision="fp32", streams_per_device=1)
    assert pq.read_table(tmp_path / "results").schema.field("embedding").type == pa.list_(pa.float32(), 512)
    *cats, broken = read_rows(tmp_path / "results")
    assert broken["error"] is not None
    assert broken["embedding"] is None
    for row in cats[::8]:
        crop = decode_image(Path(row["path"]).read_bytes(), cifar10.preprocessing)
        expected = runtime.run([crop], 1, with_embeddings=True).embedding
        assert expected is not None
        assert row["embedding"] == pytest.approx(expected[0].tolist(), abs=1e-3)
    with pytest.raises(StorageError, match="with embeddings"):
        run_job(photos, tmp_path / "results", cifar10, resume=True)


def test_model_without_embeddings_is_an_error(cluster: str, photos: Path, tmp_path: Path) -> None:
    """SqueezeNet has no embeddings: the job fails with the reason, and writes nothing."""
    assert cluster
    preprocessing = Preprocessing(64, 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    labels = tuple(map(str, range(1000)))
    model = Model("squeezenet", random_classifier().eval(), labels, preprocessing, "random weights")
    with pytest.raises(UnsupportedModelError, match="has no embedding"):
        run_job(photos, tmp_path / "results", model, config=replace(CONFIG, with_embeddings=True), limit=2)
    assert not (tmp_path / "results").exists()


def test_results_equal_those_of_classify(results: Path, cifar10: Model) -> None:
    """Two actors with batches of 16 and one process without batches return the same classes."""
    [runtime] = create_runtimes(cifar10, [torch.device("cpu")], precision="fp32", streams_per_device=1)
    rows = read_rows(results)
    assert len(rows) == FIRST
    images = discover_inputs([row["path"] for row in rows])
    expected = classify_images(images, cifar10, runtime, top_k=1, batch_size=1, workers=1)
    for row, result in zip(rows, expected, strict=True):
        assert (row["error"] is None) == (result.error is None)
        if result.error is None:
            assert row["label"] == result.ranking[0].label
            assert row["probability"] == pytest.approx(result.ranking[0].probability, abs=1e-3)


def test_resume_classifies_only_the_remaining_images(
    results: Path, photos: Path, tmp_path: Path, cifar10: Model
) -> None:
    """No image has two rows, and a second resume has nothing to do and writes no file."""
    target = tmp_path / "results"
    shutil.copytree(results, target)
    second = run_job(photos, target, cifar10, resume=True)
    assert (second.images, second.skipped) == (COUNT - FIRST, FIRST)
    files = set(target.iterdir())
    third = run_job(photos, target, cifar10, resume=True)
    assert (third.images, third.skipped) == (0, COUNT)
    assert set(target.iterdir()) == files
    assert_one_row_each(target, COUNT)
    paths = pq.read_table(target).column("path").to_pylist()
    assert paths == sorted(paths)  # also over the files of both runs


def test_results_of_other_weights_are_not_resumed(results: Path, photos: Path, cifar10: Model) -> None:
    """The name of the model is the same, but not the source of its weights."""
    other = replace(cifar10, source="https://example.org/other.pth")
    with pytest.raises(StorageError, match="results of other weights: cifar10"):
        run_job(photos, results, other, resume=True)


@pytest.mark.usefixtures("cluster")
def test_file_name_is_not_a_label(photos: Path, tmp_path: Path, cifar10: Model) -> None:
    """Without folders that are named after classes, no row has a true class, and no accuracy is claimed."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("dog.png", "cat.png"):
        shutil.copy(photos / "cat" / "001.png", images / name)
    for source, count in ((images / "dog.png", 1), (images, 2)):
        summary = run_job(source, tmp_path / f"results-{count}", cifar10)
        assert (summary.images, summary.labeled, summary.accuracy) == (count, 0, None)
        assert {row["true_class"] for row in read_rows(tmp_path / f"results-{count}")} == {None}


@pytest.mark.usefixtures("cluster")
def test_killed_workers_lose_no_image(photos: Path, tmp_path: Path, cifar10: Model) -> None:
    """The actor and the decoding tasks are killed during the run; each image still has exactly one row."""
    killed: list[str] = []

    def kill_workers(_: int) -> None:
        if not killed:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if (name := process.name()).startswith(
                        ("ray::MapWorker", "ray::MapBatches", "ray::IDLE")
                    ):
                        process.kill()
                        killed.append(name)

    job = BatchJob(str(photos), str(tmp_path / "results"), cifar10, limit=None, resume=False)
    assert job.run(CONFIG, kill_workers).images == COUNT
    assert any("MapWorker" in name for name in killed)
    assert_one_row_each(tmp_path / "results", COUNT)


KILLED_DRIVER = """
import os, signal, sys
from resnet_service.models import load_model
from resnet_service.batch_inference.cluster import ray_cluster
from resnet_service.batch_inference.execution import ExecutionConfig
from resnet_service.batch_inference.job import BatchJob

calls = 0
def on_progress(_):
    global calls
    calls += 1
    if calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)

source, target, address = sys.argv[1:]
with ray_cluster(address):
    job = BatchJob(source, target, load_model("cifar10"), limit=None, resume=False)
    job.run(ExecutionConfig(device="cpu", precision="fp32", batch_size=16), on_progress, write_every_s=0)
"""


def test_killed_run_can_be_resumed(cluster: str, photos: Path, tmp_path: Path, cifar10: Model) -> None:
    """After SIGKILL the files are complete, and resuming adds the missing rows only."""
    target = tmp_path / "results"
    command = [sys.executable, "-c", KILLED_DRIVER, str(photos), str(target), cluster]
    assert subprocess.run(command, timeout=240, check=False).returncode == -9
    before = read_rows(target)
    assert 0 < len(before) < COUNT
    assert run_job(photos, target, cifar10, resume=True).skipped == len(before)
    assert_one_row_each(target, COUNT)


@pytest.fixture(scope="module")
def bucket(photos: Path) -> Iterator[str]:
    """Start an S3 server with a bucket of 60 images; the query that its URIs need."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    filesystem, _ = FileSystem.from_uri(f"s3://key:secret@images{query}")
    filesystem.create_dir("images")
    for path in sorted(photos.rglob("*.png"))[:60]:
        with filesystem.open_output_stream(f"images/photos/{path.relative_to(photos)}") as stream:
            stream.write(path.read_bytes())
    yield query
    server.stop()


@pytest.mark.usefixtures("cluster")
def test_object_store_can_be_source_and_target(bucket: str, cifar10: Model) -> None:
    """A pattern selects images in a bucket, resuming reads rows from it, and paths contain no password."""
    source, target = f"s3://key:secret@images/photos{bucket}", f"s3://key:secret@images/results{bucket}"
    summary = run_job(source.replace("photos?", "photos/cat/*.png?"), target, cifar10)
    assert summary.images == summary.labeled == 40
    rest = run_job(source, target, cifar10, resume=True)
    assert (rest.images, rest.skipped) == (20, 40)
    filesystem, path = FileSystem.from_uri(target)
    paths = pq.read_table(path, filesystem=filesystem).column("path").to_pylist()
    assert len(paths) == len(set(paths)) == 60
    assert all(name.startswith("s3://images/photos/") for name in paths)


def test_missing_bucket_is_an_error_before_the_run(bucket: str, tmp_path: Path, cifar10: Model) -> None:
    with pytest.raises(StorageError, match="s3://nowhere/photos does not exist"):
        run_job(f"s3://key:secret@nowhere/photos{bucket}", tmp_path / "results", cifar10)
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("cluster")
def test_unreachable_images_end_the_run(photos: Path, tmp_path: Path, cifar10: Model) -> None:
    """If a folder disappears after it was listed, its images get no rows, because they may reappear."""
    folder = tmp_path / "photos"
    shutil.copytree(photos / "cat", folder)
    job = BatchJob(str(folder), str(tmp_path / "results"), cifar10, limit=None, resume=False)
    shutil.rmtree(folder)
    with pytest.raises(StorageError, match="can no longer be reached"):
        job.run(CONFIG, lambda _: None)
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_more_gpus_than_the_cluster_has_is_an_error(photos: Path, tmp_path: Path, cifar10: Model) -> None:
    """Ray itself would wait for them without an end."""
    with pytest.raises(ClusterError, match="each actor needs 1 GPUs, but the cluster has 0"):
        run_job(photos, tmp_path / "results", cifar10, config=ExecutionConfig(gpus=1))


@pytest.mark.usefixtures("cluster")
def test_error_of_an_actor_is_raised_with_its_message(photos: Path, tmp_path: Path, cifar10: Model) -> None:
    """The precision that a device does not support is reported without Ray's traceback."""
    config = ExecutionConfig(device="cpu", precision="fp16")
    with pytest.raises(DeviceUnavailableError, match="fp16 is not supported on the CPU"):
        run_job(photos, tmp_path / "results", cifar10, config=config, limit=16)


def test_unreachable_cluster_is_an_error_without_retries() -> None:
    for address in (f"127.0.0.1:{free_port()}", "nonsense"):
        with pytest.raises(ClusterError, match="cannot connect to a Ray cluster"), ray_cluster(address):
            pass
