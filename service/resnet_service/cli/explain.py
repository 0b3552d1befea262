"""`resnet-service explain`: show which places of images speak for a class."""

import json
import re
import sys
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from resnet_service.cli.common import (
    DEVICE_HELP,
    FiniteFloat,
    echo_error,
    exit_on_service_error,
    json_option,
    load_chosen_model,
    model_option,
    workers_option,
)
from resnet_service.cli.outputs import exit_on_write_error, output_option
from resnet_service.cli.tables import print_table
from resnet_service.files import atomic_write

if TYPE_CHECKING:
    from resnet_service.explanations import Explanation
    from resnet_service.models import ModelSource

_DEFAULT_OPACITY: Final = 0.55
_MAX_STEM: Final = 100
_UNSAFE: Final = re.compile(r"[^\w.-]+")


class _Row(NamedTuple):
    """One image: its name and the file with its heat, the explanation, and the label of its class."""

    image: str
    file: Path
    explanation: "Explanation"
    label: str


@click.command(short_help="Show which places of images speak for a class.")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@model_option
@output_option("Directory to write one PNG per image to.", directory=True)
@click.option("--class-id", type=click.IntRange(0), help="Index of the class to explain.")
@click.option("--label", help="Label of the class to explain, in any case.")
@click.option(
    "--opacity", type=FiniteFloat(0, 1), default=_DEFAULT_OPACITY, help="Opacity of the heat over the image."
)
@click.option("--device", default="auto", help=DEVICE_HELP)
@workers_option
@json_option("Print one JSON object per image and line, with the heat.")
def explain(
    inputs: tuple[str, ...],
    model: "ModelSource",
    output: Path,
    class_id: int | None,
    label: str | None,
    opacity: float,
    device: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Show which places of images speak for a class, by default the most probable one of each (Grad-CAM).

    INPUT is as for classify. Writes OUTPUT/NAME.png for each image: what the model sees of it, with colors
    from black to white for the places that speak for the class. Images that cannot be read are reported and
    skipped; the exit status is then 1.

    \b
    Examples:
      resnet-service explain dog.jpg --output heat
      resnet-service explain photos --label "tabby" --output heat
    """
    from resnet_service.devices import choose_device
    from resnet_service.explanations import Explainer, find_class, require_captum
    from resnet_service.images.heat_map import draw_heat_map
    from resnet_service.inference import discover_inputs, example_inputs
    from resnet_service.inference.pipeline import decode_all
    from resnet_service.machine import available_cpus

    rows: list[_Row] = []
    failed = 0
    stems: set[str] = set()
    with exit_on_service_error():
        require_captum()
        target = choose_device(device)
        loaded = load_chosen_model(model)
        chosen = find_class(loaded.labels, class_id, label)
        explainer = Explainer(loaded, target)
        with exit_on_write_error(output):
            output.mkdir(parents=True, exist_ok=True)
        images = discover_inputs(inputs, echo_error) if inputs else example_inputs()
        count = workers or available_cpus()
        for image in decode_all(images, loaded.preprocessing, count, ahead=2 * count):
            if image.crop is None:
                echo_error(f"{click.format_filename(image.name)}: {image.error}")
                failed += 1
                continue
            explanation = explainer.explain(image.crop, chosen)
            file = output / f"{_unique_stem(image.name, stems)}.png"
            with exit_on_write_error(file), atomic_write(file) as temporary:
                temporary.write_bytes(draw_heat_map(image.crop, explanation.heat, opacity))
            row = _Row(image.name, file, explanation, loaded.labels[explanation.class_id])
            rows.append(row)
            if as_json:
                click.echo(json.dumps(_to_json(row)))
    if rows and not as_json:
        table = [
            (click.format_filename(row.file), row.label, f"{row.explanation.probability:.1%}") for row in rows
        ]
        print_table(("file", "class", "probability"), table)
    if failed:
        echo_error(f"{failed:,} of {failed + len(rows):,} images could not be explained")
        sys.exit(1)


def _unique_stem(image: str, stems: set[str]) -> str:
    """Return the name of the file for an image without its suffix, and add it to those in use.

    A file system may not tell upper from lower case.
    """
    stem = _UNSAFE.sub("_", PurePath(image.partition("?")[0]).stem)[:_MAX_STEM].strip("._") or "image"
    unique, number = stem, 2
    while unique.casefold() in stems:
        unique, number = f"{stem}-{number}", number + 1
    stems.add(unique.casefold())
    return unique


def _to_json(row: _Row) -> dict[str, Any]:
    return {
        "image": row.image,
        "file": str(row.file),
        "class_id": row.explanation.class_id,
        "label": row.label,
        "probability": row.explanation.probability,
        "heat": row.explanation.heat.astype(float).round(4).tolist(),
    }
