"""`resnet-service convert`: write a model with its labels and preprocessing to one checkpoint."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_service.cli.common import exit_on_service_error, json_option, model_option, resolve_auto
from resnet_service.cli.outputs import exit_on_write_error, output_option

if TYPE_CHECKING:
    from resnet_service.models import ModelSource


@click.command(short_help="Write weights, labels and preprocessing to one checkpoint.")
@model_option
@output_option("Checkpoint to write.")
@json_option("Print one JSON object.")
def convert(model: "ModelSource", output: Path, as_json: bool) -> None:
    """Write a model to a checkpoint that contains its weights, labels and preprocessing.

    All commands take the checkpoint as --model, without other options.

    \b
    Examples:
      resnet-service convert --model resnet18 --weights own.pth \\
        --labels labels.txt --output own.safetensors
      resnet-service serve --model own.safetensors
    """
    from safetensors import SafetensorError

    from resnet_service.models import checkpoint, convert_to_checkpoint

    with exit_on_service_error():
        converted = convert_to_checkpoint(resolve_auto(model))
    with exit_on_write_error(output, (OSError, SafetensorError)):
        checkpoint.save_checkpoint(converted, output)
    facts = {
        "network": converted.network,
        "classes": len(converted.labels),
        "file_bytes": output.stat().st_size,
    }
    if as_json:
        click.echo(json.dumps({"output": str(output), **facts}))
        return
    click.echo(
        f"{click.format_filename(output)}: {converted.network}, {len(converted.labels):,} classes, "
        f"{output.stat().st_size / 1e6:.1f} MB"
    )
