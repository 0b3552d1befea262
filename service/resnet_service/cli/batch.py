"""`resnet-service batch`: a whole data set, on one machine or on a cluster."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from resnet_service.cli.errors import exit_on_service_error
from resnet_service.cli.options import execution_options, model_option

if TYPE_CHECKING:
    from resnet_service.batch_inference.job import BatchSummary


@click.command()
@click.argument("input")
@click.argument("output")
@model_option
@click.option("--top-k", type=click.IntRange(1), default=5, help="Classes for each image, at most.")
@execution_options
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Images in a batch, at most.")
@click.option("--actors", type=click.IntRange(1), default=1, help="Processes that hold the model.")
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(0),
    help="Each one's share; 0.5 puts two on each.  [default: 1 where there is a GPU, else 0]",
)
@click.option("--limit", type=click.IntRange(1), help="Take the first so many images only.")
@click.option("--resume", is_flag=True, help="Go on with OUTPUT: leave out the images it has.")
@click.option("--address", metavar="HOST:PORT", help="A Ray cluster that runs already.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def batch(
    input: str,  # noqa: A002
    output: str,
    model: str,
    weights: str | None,
    limit: int | None,
    resume: bool,
    address: str | None,
    as_json: bool,
    **execution: Any,
) -> None:
    """Classify all images of INPUT, and write a row for each into the folder OUTPUT, as Parquet.

    INPUT is a folder with all below it, a pattern or one file; both may be URIs of an object store (s3://,
    gs://). Ray Data reads and decodes in as many processes as there are cores; actors hold the model. A row
    has path, class_id, label, probability, top_k, model and, where an image cannot be read, error, which is
    no failure of the command: its status is 1 where none could be read, or the run could not end. Where
    folders are called as classes are, or by ImageNet's WordNet ids, the accuracy is told.

    \b
    Examples:
      resnet-service batch photos answers
      resnet-service batch 's3://bucket/photos/**/*.jpg' s3://bucket/answers --model resnet152
      resnet-service batch photos answers --resume
      resnet-service batch imagenette answers --model resnet152 --batch-size 720 --actors 4 --gpus-per-actor 1
      resnet-service batch s3://bucket/photos s3://bucket/answers --address head:6379
    """
    from tqdm import tqdm

    from resnet_service.batch_inference import require_ray
    from resnet_service.devices import choose_device
    from resnet_service.models import load_model

    with exit_on_service_error():
        require_ray()
        if ":" in execution["device"]:
            raise click.UsageError("Ray gives each actor its GPU; say cuda, without a number")
        if address is None:
            choose_device(execution["device"])  # first: the rest takes longer
        from resnet_service.batch_inference.execution import ExecutionConfig, ray_cluster
        from resnet_service.batch_inference.job import BatchJob

        loaded = load_model(model, weights)
        execution["top_k"] = min(execution["top_k"], len(loaded.labels))
        config = ExecutionConfig(gpus=execution.pop("gpus_per_actor"), **execution)
        work = BatchJob(input, output, loaded, limit=limit, resume=resume)
        with ray_cluster(address), tqdm(total=len(work.paths), desc=loaded.name, unit="image") as bar:
            summary = work.run(config, bar.update)
    _print(summary, as_json)
    sys.exit(1 if summary.failed and summary.failed == summary.images else 0)


def _print(summary: "BatchSummary", as_json: bool) -> None:
    if as_json:
        derived = {"images_per_second": summary.images_per_second, "accuracy": summary.accuracy}
        click.echo(json.dumps({**asdict(summary), **derived}))
        return
    lines = [
        f"{summary.images:,} images in {summary.seconds:.1f} s, {summary.images_per_second:,.1f} images/s"
    ]
    if summary.already:
        lines.append(f"{summary.already:,} were there already")
    if summary.failed:
        lines.append(f"{summary.failed:,} could not be classified: their rows say why")
    if summary.accuracy is not None:
        lines.append(f"{summary.accuracy:.1%} of {summary.labeled:,} whose class is known are right")
    click.echo("\n".join(lines))
