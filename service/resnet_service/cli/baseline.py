"""`resnet-service baseline`: record what a running service usually predicts."""

import os
import time
from importlib.util import find_spec
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from resnet_service.cli.common import exit_on_service_error
from resnet_service.cli.outputs import exit_on_write_error, output_option
from resnet_service.cli.tables import print_table

if TYPE_CHECKING:
    from resnet_service.inference.prediction_baseline import Baseline

_MIN_IMAGES: Final = 1000
_DEFAULT_CLASSES: Final = 20
_MAX_CLASSES: Final = 100
_SHOWN_CLASSES: Final = 3


@click.command(short_help="Record what a running service usually predicts.")
@click.option("--url", default="http://localhost:8000", help="URL of the service.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="Time to wait for predictions; without it, those since the start of the service count.",
)
@click.option(
    "--classes",
    type=click.IntRange(1, _MAX_CLASSES),
    default=_DEFAULT_CLASSES,
    help="Number of the most frequent classes to compare one by one; all others are one group.",
)
@output_option("File to write.")
def baseline(url: str, minutes: float | None, classes: int, output: Path) -> None:
    """Record the shares of the classes that a running service predicts, for all of its models.

    `serve --prediction-baseline FILE` shows them in the metrics. The dashboard "predictions" and the alert
    InferencePredictionsShifted compare with them. If the service requires an API key, set
    RESNET_SERVICE_API_KEY to one with the scope metrics.

    \b
    Examples:
      resnet-service baseline --output baseline.json
      resnet-service baseline --url http://gpu-host:8000 --minutes 60 -o new.json
    """
    if find_spec("httpx") is None:
        raise click.ClickException("recording a baseline needs httpx: make install EXTRAS=client")
    from resnet_service.client import APIError, Client, ServiceUnavailableError
    from resnet_service.diagnostics.baseline_recorder import read_predictions, record_baseline
    from resnet_service.files import atomic_write
    from resnet_service.settings import PAGE_API_KEY_VARIABLE

    with exit_on_service_error():
        try:
            with Client(url, api_key=os.environ.get(PAGE_API_KEY_VARIABLE)) as client:
                before = {}
                if minutes is not None:
                    before = read_predictions(client.metrics())
                    _wait(60 * minutes)
                after = read_predictions(client.metrics())
        except (APIError, ServiceUnavailableError) as error:
            raise click.ClickException(str(error)) from error
        recorded = record_baseline(before, after, classes)
    with exit_on_write_error(output), atomic_write(output) as temporary:
        temporary.write_text(recorded.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _print(recorded)


def _wait(seconds: float) -> None:
    from tqdm import tqdm

    for _ in tqdm(range(ceil(seconds)), desc="waiting for predictions", unit="s"):
        time.sleep(min(1.0, seconds))


def _print(recorded: "Baseline") -> None:
    rows = [
        (
            name,
            f"{model.images:,}",
            f"{len(model.shares)}",
            f"{sum(model.shares.values()):.1%}",
            f"{model.probability:.3f}",
            ", ".join(
                f"{label} {share:.1%}" for label, share in islice(model.shares.items(), _SHOWN_CLASSES)
            ),
        )
        for name, model in recorded.models.items()
    ]
    print_table(("model", "images", "classes", "their share", "probability", "most frequent"), rows)
    if min(model.images for model in recorded.models.values()) < _MIN_IMAGES:
        click.echo(
            f"Fewer than {_MIN_IMAGES:,} images describe the usual predictions only roughly: the alert may "
            "fire without a reason.",
            err=True,
        )
