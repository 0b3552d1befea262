"""`resnet-service batch`: a data set from a folder or an object store, on a real Ray, into Parquet."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from click.testing import CliRunner

from monitoring.local import free_port
from resnet_service.cli import main
from resnet_service.errors import ClusterError, DeviceUnavailableError, StorageError
from resnet_service.inference import classify_images, discover_inputs
from resnet_service.models import Model, load_model
from resnet_service.runtimes.selection import create_runtimes
from tests.support.images import encode, make_image

pytest.importorskip("ray", reason="needs the extra ray")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem

from resnet_service.batch_inference.execution import ExecutionConfig, ray_cluster
from resnet_service.batch_inference.job import BatchJob, BatchSummary

FP32 = ExecutionConfig(device="cpu", precision="fp32", batch_size=16)
COUNT = 300


@pytest.fixture(scope="module", autouse=True)
def at_ones_own_pace() -> Iterator[None]:
    """Let Ray's workers have the cores like anybody else: on a busy machine they would never begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray cluster on this machine."""
    with ray_cluster():
        yield


@pytest.fixture(scope="module")
def bundled() -> Model:
    return load_model("bundled")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders called as classes are, with 300 images in all, of which one is none."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        location = folder / ("dog", "cat", "ship")[number % 3]
        location.mkdir(exist_ok=True)
        (location / f"{number:03}.png").write_bytes(encode(make_image(40, 40, seed=number % 20), "PNG"))
    (folder / "dog" / "000.png").write_bytes(b"This is not an image.")
    (folder / "dog" / "notes.txt").write_text("Nor does this look like one.")
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return sorted(found, key=lambda row: str(row["path"]))


def classify_dataset(source: object, target: object, model: Model, **options: Any) -> BatchSummary:
    config = options.pop("how", FP32)
    work = BatchJob(str(source), str(target), model, **{"limit": None, "resume": False, **options})
    return work.run(config, lambda _: None)


def test_a_folder_becomes_a_table(photos: Path, tmp_path: Path) -> None:
    """The command writes a row for each image, an unreadable one's with its error, and sums them up."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "resnet_service", "batch", str(photos), "--output", str(tmp_path / "answers")),
            *("--model", "bundled", "--top-k", "2", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "300/300" in result.stderr  # the progress bar
    summary = json.loads(result.stdout)
    assert (summary["images"], summary["failed"], summary["labeled"]) == (COUNT, 1, COUNT - 1)
    found = rows(tmp_path / "answers")
    assert [row["path"] for row in found] == sorted(map(str, photos.rglob("*.png")))
    [bad] = [row for row in found if row["error"] is not None]
    assert bad["path"].endswith("dog/000.png")
    assert bad["class_id"] is None
    assert bad["top_k"] is None
    right = 0
    for row in found:
        assert row["model"] == "bundled"
        if row is not bad:
            best, second = row["top_k"]
            assert best == {name: row[name] for name in ("class_id", "label", "probability")}
            assert best["probability"] >= second["probability"]
            right += Path(row["path"]).parent.name == row["label"]
    assert summary["accuracy"] == pytest.approx(right / (COUNT - 1))


@pytest.mark.usefixtures("ray")
def test_the_answers_are_those_of_classify(photos: Path, tmp_path: Path, bundled: Model) -> None:
    """Two actors in batches of 16 answer as one process does image by image."""
    config = ExecutionConfig(device="cpu", precision="fp32", batch_size=16, actors=2, top_k=1)
    classify_dataset(photos, tmp_path / "answers", bundled, how=config, limit=100)
    [runtime] = create_runtimes(bundled, [torch.device("cpu")], precision="fp32", streams_per_device=1)
    found = rows(tmp_path / "answers")
    assert len(found) == 100
    sources = discover_inputs([row["path"] for row in found])
    expected = classify_images(sources, bundled, runtime, top_k=1, batch_size=1, workers=1)
    for row, outcome in zip(found, expected, strict=True):
        assert (row["error"] is None) == (outcome.error is None)
        if outcome.error is None:
            assert row["label"] == outcome.ranking[0].label
            assert row["probability"] == pytest.approx(outcome.ranking[0].probability, abs=1e-3)


@pytest.mark.usefixtures("ray")
def test_resuming_does_only_what_is_left(photos: Path, tmp_path: Path, bundled: Model) -> None:
    """After the first 130 the rest is done, no image twice, and then nothing is left to do."""
    target = tmp_path / "answers"
    assert classify_dataset(photos, target, bundled, limit=130).images == 130
    second = classify_dataset(photos, target, bundled, resume=True)
    assert (second.images, second.already) == (COUNT - 130, 130)
    files = set(target.iterdir())
    third = classify_dataset(photos, target, bundled, resume=True)
    assert (third.images, third.already) == (0, COUNT)
    assert set(target.iterdir()) == files
    paths = [row["path"] for row in rows(target)]
    assert len(paths) == len(set(paths)) == COUNT


@pytest.mark.usefixtures("ray")
def test_a_dead_worker_loses_nothing(photos: Path, tmp_path: Path, bundled: Model) -> None:
    """The actor and what decodes are killed in the middle: each image still has its one row."""
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

    work = BatchJob(str(photos), str(tmp_path / "answers"), bundled, limit=None, resume=False)
    summary = work.run(FP32, kill_workers)
    assert any("MapWorker" in name for name in killed)
    assert summary.images == COUNT
    paths = [row["path"] for row in rows(tmp_path / "answers")]
    assert len(paths) == len(set(paths)) == COUNT


KILLED = """
import os, signal, sys
from resnet_service.models import load_model
from resnet_service.batch_inference.execution import ExecutionConfig, ray_cluster
from resnet_service.batch_inference.job import BatchJob

calls = 0
def on_progress(_):
    global calls
    calls += 1
    if calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)

with ray_cluster():
    work = BatchJob(sys.argv[1], sys.argv[2], load_model("bundled"), limit=None, resume=False)
    work.run(ExecutionConfig(device="cpu", precision="fp32"), on_progress, write_every_s=0)
"""


@pytest.mark.usefixtures("ray")
def test_a_killed_run_is_resumed(photos: Path, tmp_path: Path, bundled: Model) -> None:
    """After SIGKILL the rows that were written are whole, and --resume adds the others, none twice."""
    target = tmp_path / "answers"
    command = [sys.executable, "-c", KILLED, str(photos), str(target)]
    assert subprocess.run(command, timeout=240, check=False).returncode == -9
    before = rows(target)
    assert 0 < len(before) < COUNT
    assert classify_dataset(photos, target, bundled, resume=True).already == len(before)
    paths = [row["path"] for row in rows(target)]
    assert len(paths) == len(set(paths)) == COUNT


@pytest.fixture(scope="module")
def bucket(photos: Path) -> Iterator[str]:
    """A bucket on a real S3 server with the images under photos/; what follows s3:// and a path in it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    filesystem, _ = FileSystem.from_uri(f"s3://key:secret@images{query}")
    filesystem.create_dir("images")
    for path in sorted(photos.rglob("*.png"))[:150]:
        with filesystem.open_output_stream(f"images/photos/{path.relative_to(photos)}") as stream:
            stream.write(path.read_bytes())
    yield query
    server.stop()


@pytest.mark.usefixtures("ray")
def test_from_a_bucket_to_a_bucket(bucket: str, bundled: Model) -> None:
    """Images are read from S3 and rows written there; a pattern takes some; paths tell no password."""
    source, target = f"s3://key:secret@images/photos{bucket}", f"s3://key:secret@images/answers{bucket}"
    summary = classify_dataset(source.replace("photos?", "photos/cat/*.png?"), target, bundled)
    assert summary.images == summary.labeled == 100
    rest = classify_dataset(source, target, bundled, resume=True)
    assert (rest.images, rest.already) == (50, 100)
    filesystem, path = FileSystem.from_uri(target)
    found = pq.read_table(path, filesystem=filesystem).column("path").to_pylist()
    assert len(found) == len(set(found)) == 150
    assert all(name.startswith("s3://images/photos/") for name in found)


def test_a_bucket_that_is_not_there(bucket: str, tmp_path: Path, bundled: Model) -> None:
    """It is said before anything is begun."""
    with pytest.raises(StorageError, match="there is no s3://nowhere/photos"):
        classify_dataset(f"s3://key:secret@nowhere/photos{bucket}", tmp_path / "answers", bundled)
    assert not (tmp_path / "answers").exists()


def test_what_cannot_be_used_is_said(photos: Path, tmp_path: Path, bundled: Model) -> None:
    """No images, no such folder, a file as output, rows of something else, a scheme that there is not."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "old [1]").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    table = pa.table({"path": ["x"], "model": ["resnet50"]})
    pq.write_table(table, tmp_path / "other" / "part.parquet")
    pq.write_table(table.select(["path"]), tmp_path / "empty" / "foreign.parquet")
    for source, target, resume, words in (
        (tmp_path / "empty", "answers", False, "holds no images"),
        (tmp_path / "missing", "answers", False, "there is no"),
        (tmp_path / "old [1]", "answers", False, "holds no images"),
        (f"{photos}/*.tiff", "answers", False, "holds no images"),
        ("nosuch://bucket/photos", "answers", False, "Unrecognized filesystem type in URI: it"),
        ("s3://key:sec^ret@bucket/photos", "answers", False, "Cannot parse URI: .it. due to"),
        (photos, "file", False, "is a file"),
        (photos, "other", False, "--resume goes on with them"),
        (photos, "other", True, "answers of resnet50, not of bundled"),
        (photos, "empty", True, "something else"),
    ):
        with pytest.raises(StorageError, match=words):
            classify_dataset(source, tmp_path / target, bundled, resume=resume)


@pytest.mark.usefixtures("ray")
def test_images_that_can_no_longer_be_reached_end_the_run(
    photos: Path, tmp_path: Path, bundled: Model
) -> None:
    """A folder that goes away after it was listed is no row of error for each image: they may come back."""
    gone = tmp_path / "photos"
    shutil.copytree(photos / "cat", gone)
    work = BatchJob(str(gone), str(tmp_path / "answers"), bundled, limit=None, resume=False)
    shutil.rmtree(gone)
    with pytest.raises(StorageError, match="can no longer be reached"):
        work.run(FP32, lambda _: None)
    assert not (tmp_path / "answers").exists()


@pytest.mark.usefixtures("ray")
def test_other_weights_are_another_model(photos: Path, tmp_path: Path, bundled: Model) -> None:
    """What was answered with other weights of the same name is not gone on with."""
    classify_dataset(photos, tmp_path / "answers", bundled, limit=20)
    other = replace(bundled, source="https://example.org/other.pth")
    with pytest.raises(StorageError, match="other weights: cifar10"):
        classify_dataset(photos, tmp_path / "answers", other, resume=True)


@pytest.mark.usefixtures("ray")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_more_gpus_than_there_are(photos: Path, tmp_path: Path, bundled: Model) -> None:
    """It is said, where Ray would wait for them for ever."""
    with pytest.raises(ClusterError, match="is to have 1 GPUs, and the cluster has 0"):
        classify_dataset(photos, tmp_path / "answers", bundled, how=ExecutionConfig(gpus=1))


@pytest.mark.usefixtures("ray")
def test_what_the_device_cannot_do_is_said(photos: Path, tmp_path: Path, bundled: Model) -> None:
    """An actor's rejection reaches the user in its own words, instead of Ray's traceback."""
    with pytest.raises(DeviceUnavailableError, match="fp16 is not supported on the CPU"):
        classify_dataset(
            photos, tmp_path / "answers", bundled, how=ExecutionConfig(device="cpu", precision="fp16")
        )


def test_a_cluster_that_runs_already(photos: Path, tmp_path: Path) -> None:
    """--address joins it, with its token, and leaves it running."""
    port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
    options = ["--include-dashboard=false", "--num-cpus=2", "--disable-usage-stats"]
    with (
        # Of its own, or whoever starts Ray later would look for this cluster; short, as sockets are in it.
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [*ray, *options, f"--temp-dir={folder}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as head,
    ):
        try:
            assert head.stdout is not None
            said = list(takewhile(lambda line: "Ray runtime started" not in line, head.stdout))
            assert head.poll() is None, "".join(said)
            command = [
                sys.executable,
                "-m",
                "resnet_service",
                "batch",
                str(photos),
                "--output",
                str(tmp_path / "answers"),
            ]
            arguments = ["--model", "bundled", "--limit", "40", "--address", f"127.0.0.1:{port}"]
            result = subprocess.run(
                [*command, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert result.returncode == 0, result.stderr
            assert len(rows(tmp_path / "answers")) == 40
            assert head.poll() is None
        finally:
            head.terminate()


def test_a_cluster_that_is_away() -> None:
    """Nobody at the address, or no address at all, is told at once."""
    for address in (f"127.0.0.1:{free_port()}", "nonsense"):
        with pytest.raises(ClusterError, match="no Ray cluster answers"), ray_cluster(address):
            pass


def test_mistakes_on_the_command_line(photos: Path, tmp_path: Path) -> None:
    """A missing device or folder is a message and status 1, a wrong option status 2."""
    for options, status, words in (
        (["--device", "toaster"], 1, "unknown device"),
        (["--model", "resnet5000"], 1, "did you mean"),
        (["--model", "bundled", "--address", f"127.0.0.1:{free_port()}"], 1, "no Ray cluster answers"),
        (["--actors", "0"], 2, "actors"),
        (["--device", "cuda:0"], 2, "Ray gives each actor its GPU"),
    ):
        result = CliRunner().invoke(main, ["batch", str(photos), "--output", str(tmp_path / "answers"), *options])
        assert result.exit_code == status, result.output
        assert words in result.stderr
        assert isinstance(result.exception, SystemExit)
