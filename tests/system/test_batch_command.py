"""`resnet-service batch` on a cluster that is already running, and its error messages."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from click.testing import CliRunner

pytest.importorskip("ray", reason="needs the extra ray")

import pyarrow as pa
import pyarrow.parquet as pq

from monitoring.local import free_port
from resnet_service.batch_inference.job import BatchJob
from resnet_service.cli import main
from resnet_service.errors import StorageError
from resnet_service.images.file_names import SUFFIXES
from resnet_service.models import load_model
from tests.support.batch_inference import run_job, write_photos
from tests.support.commands import run_command

COUNT = 60


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, COUNT)
    return folder


@contextmanager
def running_cluster(environment: Mapping[str, str]) -> Iterator[str]:
    """Start a Ray cluster with `ray start`, and yield its address; it must still run at the end."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
    options = ["--include-dashboard=false", "--num-cpus=2", "--disable-usage-stats"]
    with (
        # A separate folder, so that later Ray drivers do not find this cluster; short, for its sockets.
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [*command, *options, f"--temp-dir={folder}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as head,
    ):
        try:
            assert head.stdout is not None
            output = list(takewhile(lambda line: "Ray runtime started" not in line, head.stdout))
            assert head.poll() is None, "".join(output)
            yield f"127.0.0.1:{port}"
            assert head.poll() is None
        finally:
            # Killed, because after a SIGTERM the cluster needs 30 s to end.
            process = psutil.Process(head.pid)
            for member in (*process.children(recursive=True), process):
                with suppress(psutil.NoSuchProcess):
                    member.kill()


def test_command_writes_a_row_per_image_on_a_running_cluster(photos: Path, tmp_path: Path) -> None:
    """--address and the token are used, rows have the order of the paths, and Ray writes no line.

    An unreadable image has an error, and a summary is printed.
    """
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex, "RAY_worker_niceness": "0"}
    environment = {**os.environ, **variables}
    with running_cluster(environment) as address:
        arguments = ["batch", str(photos), "--output", str(tmp_path / "results"), "--model", "cifar10"]
        arguments += ["--top-k", "2", "--address", address, "--json"]
        status, output = run_command(arguments, tmp_path, environment, 240)
    assert status == 0, output
    assert f"{COUNT}/{COUNT}" in output  # the progress bar
    assert "skipped 1 file without the name of an image: dog/notes.txt" in output
    summary = json.loads(output.splitlines()[-1])
    assert (summary["images"], summary["failed"], summary["labeled"]) == (COUNT, 1, COUNT - 1)
    lines = re.split(r"[\r\n]+", output.strip())
    assert [line for line in lines if not re.match(rf"cifar10: |{{|{photos}: skipped", line)] == []
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "results").to_pylist()
    assert [row["path"] for row in rows] == sorted(map(str, photos.rglob("*.png")))
    assert [row["true_class"] for row in rows] == [Path(row["path"]).parent.name for row in rows]
    [failed] = [row for row in rows if row["error"] is not None]
    assert failed["path"].endswith("dog/000.png")
    assert failed["class_id"] is None
    assert failed["top_k"] is None
    correct = 0
    for row in rows:
        assert row["model"] == "cifar10"
        if row is not failed:
            best, second = row["top_k"]
            assert best == {name: row[name] for name in ("class_id", "label", "probability")}
            assert best["probability"] >= second["probability"]
            correct += row["true_class"] == row["label"]
    assert summary["correct"] == correct
    assert summary["accuracy"] == pytest.approx(correct / (COUNT - 1))


@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_job_has_the_same_images_as_other_folders(tmp_path: Path, pattern: str) -> None:
    """The list of suffixes is that of `classify`; hidden files are ignored, and other files are named."""
    names = [f"image{suffix}" for suffix in chain.from_iterable(SUFFIXES.values())]
    for name in (*names, "notes.txt", ".hidden.jpg"):
        (tmp_path / name).touch()
    messages: list[str] = []
    source, target = str(tmp_path / pattern), str(tmp_path / "results")
    model = load_model("cifar10")
    job = BatchJob(source, target, model, limit=None, resume=False, on_message=messages.append)
    assert job.paths == sorted(str(tmp_path / name) for name in names)
    assert messages == [f"{tmp_path}: skipped 1 file without the name of an image: notes.txt"]


def test_unusable_source_or_target_is_an_error(photos: Path, tmp_path: Path) -> None:
    """Each case has its own message: no images, other files in the target, a URI that is not supported."""
    cifar10 = load_model("cifar10")
    for name in ("empty", "old [1]", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    table = pa.table({"path": ["x"], "model": ["resnet50"]})
    pq.write_table(table, tmp_path / "other" / "part.parquet")
    pq.write_table(table.select(["path"]), tmp_path / "empty" / "foreign.parquet")
    for source, target, resume, message in (
        (tmp_path / "empty", "results", False, "contains no images"),
        (tmp_path / "missing", "results", False, "does not exist"),
        (tmp_path / "old [1]", "results", False, "contains no images"),
        (f"{photos}/*.tiff", "results", False, "contains no images"),
        ("nosuch://bucket/photos", "results", False, "Unrecognized filesystem type in URI: <hidden>"),
        ("s3://key:sec^ret@bucket/photos", "results", False, "Cannot parse URI: '<hidden>' due to"),
        (photos, "file", False, "is a file"),
        (photos, "other", False, "use --resume to continue"),
        (photos, "other", True, "results of resnet50, not of cifar10"),
        (photos, "empty", True, "that are not batch results"),
    ):
        with pytest.raises(StorageError, match=message):
            run_job(source, tmp_path / target, cifar10, resume=resume)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--device", "toaster"], 1, "unknown device"),
        (["--model", "resnet5000"], 1, "did you mean"),
        (["--model", "cifar10", "--address", "127.0.0.1:9"], 1, "cannot connect to a Ray cluster"),
        (["--actors", "0"], 2, "actors"),
        (["--device", "cuda:0"], 2, "Ray assigns a GPU to each actor"),
    ],
    ids=str,
)
def test_invalid_options_are_one_message(
    photos: Path, tmp_path: Path, options: list[str], status: int, message: str
) -> None:
    arguments = ["batch", str(photos), "--output", str(tmp_path / "results"), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)
