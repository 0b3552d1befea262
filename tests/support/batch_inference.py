"""Images for batch inference, and jobs on a Ray cluster on this machine."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from resnet_service.batch_inference.execution import ExecutionConfig
from resnet_service.batch_inference.job import BatchJob, BatchSummary
from resnet_service.models import Model
from tests.support.images import encode, make_image

CONFIG = ExecutionConfig(device="cpu", precision="fp32", batch_size=16)
LABELS = ("dog", "cat", "ship")


def write_photos(folder: Path, count: int) -> None:
    """Write `count` images into folders named after classes; the first is broken. Also writes a text file."""
    for number in range(count):
        parent = folder / LABELS[number % len(LABELS)]
        parent.mkdir(exist_ok=True)
        (parent / f"{number:03}.png").write_bytes(encode(make_image(40, 40, seed=number % 20), "PNG"))
    (folder / "dog" / "000.png").write_bytes(b"This is not an image.")
    (folder / "dog" / "notes.txt").write_text("This does not have the name of an image.")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a results folder, sorted by path."""
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return sorted(rows, key=lambda row: str(row["path"]))


def assert_one_row_each(folder: Path, count: int) -> None:
    """Assert that the results have exactly one row for each of `count` images."""
    paths = [row["path"] for row in read_rows(folder)]
    assert len(paths) == len(set(paths)) == count


def run_job(
    source: object,
    target: object,
    model: Model,
    *,
    config: ExecutionConfig = CONFIG,
    limit: int | None = None,
    resume: bool = False,
) -> BatchSummary:
    """Run a job; needs a Ray cluster unless it fails before."""
    with_embeddings = config.with_embeddings
    job = BatchJob(
        str(source), str(target), model, limit=limit, resume=resume, with_embeddings=with_embeddings
    )
    return job.run(config, lambda _: None)
