"""`resnet-service export`: write a model as an ONNX file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from resnet_service.cli.common import exit_on_service_error, json_option, load_chosen_model, model_option
from resnet_service.cli.outputs import exit_on_write_error, output_option

if TYPE_CHECKING:
    from resnet_service.models import ModelSource


@click.command(short_help="Write a model as an ONNX file.")
@model_option
@output_option("ONNX file to write; its name ends in .onnx.")
@json_option("Print one JSON object.")
def export(model: "ModelSource", output: Path, as_json: bool) -> None:
    """Write a model as an ONNX file, which contains its labels and its preprocessing.

    `quantize --output FILE.onnx` writes one with int8 operations. An ONNX file that has a JSON file with its
    labels beside it becomes one file.

    \b
    Examples:
      resnet-service export --model resnet50 -o resnet50.onnx
      resnet-service serve --model resnet50.onnx
    """
    from resnet_service.models.onnx import SUFFIX, save_onnx
    from resnet_service.models.onnx_export import check_exportable, export_onnx, require_exporter

    if output.suffix.lower() != SUFFIX:
        raise click.UsageError(f"the name of --output must end in {SUFFIX}, by which --model recognizes it")
    with exit_on_service_error():
        require_exporter()
        loaded = load_chosen_model(model)
        check_exportable(loaded)
        exported = export_onnx(loaded)
        with exit_on_write_error(output):
            save_onnx(exported, output)
    file_bytes = output.stat().st_size
    if as_json:
        content = {"output": str(output), "file_bytes": file_bytes, "exported_from": loaded.name}
        click.echo(json.dumps(content))
        return
    side = exported.preprocessing.crop
    click.echo(
        f"{click.format_filename(output)}: {file_bytes / 1e6:.1f} MB; input [N, 3, {side}, {side}], "
        f"output [N, {len(exported.labels)}]"
    )
