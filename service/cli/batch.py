"""`resnet-service batch`: a whole data set, on one machine or on a cluster."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import execution_options, model_option
from service.cli.refusals import refusals

if TYPE_CHECKING:
    from service.dataset.run import Summary


@click.command()
@click.argument("input")
@click.argument("output")
@model_option
@click.option("--top-k", type=click.IntRange(1), default=5, help="Classes for each picture, at most.")
@execution_options
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Pictures in a batch, at most.")
@click.option("--actors", type=click.IntRange(1), default=1, help="Processes that hold the model.")
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(0),
    help="Each one's share; 0.5 puts two on each.  [default: 1 where there is a GPU, else 0]",
)
@click.option("--limit", type=click.IntRange(1), help="Take the first so many pictures only.")
@click.option("--resume", is_flag=True, help="Go on with OUTPUT: leave out the pictures it has.")
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
    """Classify all pictures of INPUT, and write a row for each into the folder OUTPUT, as Parquet.

    INPUT is a folder with all below it, a pattern or one file; both may be URIs of an object store (s3://,
    gs://). Ray Data reads and decodes in as many processes as there are cores; actors hold the model. A row
    has path, class_id, label, probability, top_k, model and, where a picture cannot be read, error, which is
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

    from service import dataset, hardware, models

    with refusals():
        dataset.require()
        if ":" in execution["device"]:
            raise click.UsageError("Ray gives each actor its GPU; say cuda, without a number")
        if address is None:
            hardware.choose_device(execution["device"])  # first: the rest takes longer
        from service.dataset.execution import Execution, cluster
        from service.dataset.run import Work

        loaded = models.load(model, weights)
        execution["top_k"] = min(execution["top_k"], len(loaded.labels))
        how = Execution(gpus=execution.pop("gpus_per_actor"), **execution)
        work = Work(input, output, loaded, limit=limit, resume=resume)
        with cluster(address), tqdm(total=len(work.paths), desc=loaded.name, unit="picture") as bar:
            summary = work.run(how, bar.update)
    _print(summary, as_json)
    sys.exit(1 if summary.failed and summary.failed == summary.pictures else 0)


def _print(summary: "Summary", as_json: bool) -> None:
    if as_json:
        derived = {"images_per_second": summary.images_per_second, "accuracy": summary.accuracy}
        click.echo(json.dumps({**asdict(summary), **derived}))
        return
    lines = [
        f"{summary.pictures:,} pictures in {summary.seconds:.1f} s, {summary.images_per_second:,.1f} images/s"
    ]
    if summary.already:
        lines.append(f"{summary.already:,} were there already")
    if summary.failed:
        lines.append(f"{summary.failed:,} could not be classified: their rows say why")
    if summary.accuracy is not None:
        lines.append(f"{summary.accuracy:.1%} of {summary.labelled:,} whose class is known are right")
    click.echo("\n".join(lines))
