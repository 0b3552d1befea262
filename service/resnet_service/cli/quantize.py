"""`resnet-service quantize`: convert a model to int8 with the images of a directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_service.cli.common import (
    exit_on_service_error,
    json_option,
    load_chosen_model,
    model_option,
    report_skipped,
)
from resnet_service.cli.outputs import exit_on_write_error, output_option

if TYPE_CHECKING:
    from resnet_service.models import Model, ModelSource


@click.command(short_help="Convert a model to int8 for CPUs.")
@model_option
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    metavar="DIRECTORY",
    help="Images to calibrate on, similar to those in production; searched recursively.",
)
@click.option("--samples", type=click.IntRange(1), default=300, help="Maximum number of calibration images.")
@output_option("Checkpoint to write, or an ONNX file if its name ends in .onnx.")
@json_option("Print one JSON object.")
def quantize(model: "ModelSource", data: Path, samples: int, output: Path, as_json: bool) -> None:
    """Convert a model to int8, calibrated on images. The checkpoint or ONNX file can be served on CPUs.

    \b
    Examples:
      resnet-service quantize --model resnet50 --data photos -o int8.safetensors
      resnet-service serve --model int8.safetensors
      resnet-service quantize --model resnet50 --data photos -o int8.onnx
    """
    from safetensors import SafetensorError

    from resnet_service.models.onnx import SUFFIX
    from resnet_service.models.onnx_export import export_onnx, require_exporter
    from resnet_service.runtimes.quantization import (
        check_quantizable,
        quantize,
        quantize_onnx,
        require_nncf,
    )
    from resnet_service.runtimes.selection import require_onnxruntime
    from resnet_service.training.data import load_calibration_images

    to_onnx = output.suffix.lower() == SUFFIX
    with exit_on_service_error():
        require_nncf()
        if to_onnx:
            require_exporter()
            require_onnxruntime()
        loaded = load_chosen_model(model)
        check_quantizable(loaded)
        dataset = load_calibration_images(data, loaded.preprocessing, samples)
        images = dataset.images.permute(0, 2, 3, 1).numpy()
        result = quantize_onnx(export_onnx(loaded), images) if to_onnx else quantize(loaded, images)
        facts = {"quantized_from": loaded.name, "calibrated_on": len(dataset), "agreement": result.agreement}
        with exit_on_write_error(output, (OSError, SafetensorError)):
            _save(result.model, facts, output)
    file_bytes = output.stat().st_size
    if as_json:
        content = {"output": str(output), "file_bytes": file_bytes, **facts}
        unreadable = {str(path): reason for path, reason in dataset.unreadable.items()}
        click.echo(json.dumps({**content, "unreadable": unreadable}))
        return
    report_skipped(dataset.unreadable)
    click.echo(
        f"{click.format_filename(output)}: {file_bytes / 1e6:.1f} MB; best class equal to {loaded.name}'s "
        f"for {result.agreement:.1%} of {len(dataset):,} images"
    )


def _save(model: "Model", facts: Mapping[str, Any], path: Path) -> None:
    from resnet_service.models import checkpoint
    from resnet_service.models.onnx import save_onnx

    if model.openvino_model is None:
        save_onnx(model, path)
        return
    state = model.openvino_model.state_dict()
    content = checkpoint.Checkpoint(model.name, model.labels, model.preprocessing, state, facts)
    checkpoint.save_checkpoint(content, path)
