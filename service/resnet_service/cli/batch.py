"""`resnet-service batch`: classify a data set with Ray Data, on one machine or on a cluster."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from resnet_service.cli.common import (
    batch_size_option,
    echo_error,
    execution_options,
    exit_on_service_error,
    json_option,
    load_chosen_model,
    model_option,
)
from resnet_service.cli.outputs import check_local_directory

if TYPE_CHECKING:
    from resnet_service.batch_inference.job import BatchSummary
    from resnet_service.models import ModelSource


@click.command(short_help="Classify a data set into Parquet files with Ray Data.")
@click.argument("source", metavar="INPUT")
@click.option(
    *("--output", "-o", "target"),
    required=True,
    metavar="DIRECTORY",
    callback=check_local_directory,
    help="Directory or URI of the rows.",
)
@model_option
@click.option("--top-k", type=click.IntRange(1), default=5, help="Maximum number of classes per image.")
@execution_options
@batch_size_option(64)
@click.option("--actors", type=click.IntRange(1), default=1, help="Number of processes that run the model.")
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(0),
    show_default="1 if there is a GPU, else 0",
    help="GPUs for each actor; 0.5 puts two actors on each GPU.",
)
@click.option(
    "--embeddings",
    "with_embeddings",
    is_flag=True,
    help="Add the embeddings, a column of fixed-size lists of floats.",
)
@click.option("--limit", type=click.IntRange(1), help="Use only the first images, at most this many.")
@click.option("--resume", is_flag=True, help="Skip the images that already have a row in --output.")
@click.option("--address", metavar="HOST:PORT", help="Address of a running Ray cluster.")
@json_option("Print the summary as one JSON object.")
def batch(
    source: str,
    target: str,
    model: "ModelSource",
    limit: int | None,
    resume: bool,
    address: str | None,
    as_json: bool,
    **execution: Any,
) -> None:
    """Classify all images of INPUT and write one row per image to Parquet files.

    INPUT is a directory (searched recursively), a glob pattern or a file. INPUT and --output may be object
    store URIs (s3://, gs://). Ray Data reads and decodes in one process per CPU core; actors run the model.

    A row has path, true_class, class_id, label, probability, top_k, model and error; rows are sorted by path.
    With --embeddings, a row has the embedding, too: the input of the network's last linear layer.
    An image that cannot be read has a row with an error; the exit status is 1 only if no image could be read
    or the run could not finish. If directories are named after classes of the model or ImageNet's WordNet
    ids, true_class is the name of the image's directory, and accuracy is printed.

    \b
    Examples:
      resnet-service batch photos --output results
      resnet-service batch photos --output results --resume
      resnet-service batch 's3://bucket/photos/**/*.jpg' -o s3://bucket/results
      resnet-service batch photos -o results --actors 4 --gpus-per-actor 1
      resnet-service batch s3://bucket/photos -o results --address head:6379
    """
    from tqdm import tqdm

    from resnet_service.batch_inference import require_ray
    from resnet_service.devices import choose_device
    from resnet_service.runtimes.selection import check_options

    with exit_on_service_error():
        require_ray()
        if ":" in execution["device"]:
            raise click.UsageError("Ray assigns a GPU to each actor; use --device cuda without an index")
        if address is None:
            # First: the rest takes longer. A cluster may have other devices.
            check_options(choose_device(execution["device"]), execution["runtime"], execution["precision"])
        from resnet_service.batch_inference.cluster import ray_cluster
        from resnet_service.batch_inference.execution import ExecutionConfig
        from resnet_service.batch_inference.job import BatchJob

        loaded = load_chosen_model(model)
        execution["top_k"] = min(execution["top_k"], len(loaded.labels))
        config = ExecutionConfig(gpus=execution.pop("gpus_per_actor"), **execution)
        job = BatchJob(
            *(source, target, loaded),
            limit=limit,
            resume=resume,
            with_embeddings=config.with_embeddings,
            on_message=echo_error,
        )
        with ray_cluster(address), tqdm(total=len(job.paths), desc=loaded.name, unit="image") as bar:
            summary = job.run(config, bar.update)
    _print_summary(summary, as_json)
    sys.exit(1 if summary.failed and summary.failed == summary.images else 0)


def _print_summary(summary: "BatchSummary", as_json: bool) -> None:
    if as_json:
        derived = {"images_per_second": summary.images_per_second, "accuracy": summary.accuracy}
        click.echo(json.dumps({**asdict(summary), **derived}))
        return
    click.echo(
        f"{summary.images:,} images in {summary.seconds:.1f} s, {summary.images_per_second:,.1f} images/s"
    )
    if summary.skipped:
        click.echo(f"{summary.skipped:,} images skipped: they already have a row")
    if summary.failed:
        click.echo(f"{summary.failed:,} images could not be classified: see the error column")
    if summary.accuracy is not None:
        click.echo(f"accuracy {summary.accuracy:.1%} on {summary.labeled:,} images with a known class")
