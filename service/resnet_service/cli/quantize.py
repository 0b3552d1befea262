"""`resnet-service quantize`: an int8 model from a float one and a folder of images."""

from pathlib import Path

import click

from resnet_service.cli.errors import exit_on_service_error


@click.command()
@click.argument("model")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of images like those to come; looked through with its subfolders.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@click.option("--samples", type=click.IntRange(1), default=300, help="Images to calibrate on, at most.")
@click.option("--weights", help="Weights for a torchvision classifier, as for serve.")
def quantize(model: str, images: Path, out: Path, samples: int, weights: str | None) -> None:
    """Quantize a MODEL to int8, calibrated on images; the result is served like any model, on CPUs.

    \b
    Examples:
      resnet-service quantize resnet50 --images photos --out resnet50-int8.safetensors
      resnet-service serve --model resnet50-int8.safetensors
    """
    from resnet_service.models import checkpoint, load_model
    from resnet_service.runtimes.quantization import load_calibration_images, quantize

    with exit_on_service_error():
        if not out.absolute().parent.is_dir():
            raise click.UsageError(f"there is no folder {out.absolute().parent} to write to")
        loaded = load_model(model, weights)
        dataset = load_calibration_images(images, loaded, samples)
        result = quantize(loaded, dataset.images.permute(0, 2, 3, 1).numpy())
        quantized = result.model
        facts = {"quantized_from": model, "calibrated_on": len(dataset), "agreement": result.agreement}
        assert quantized.openvino_model is not None
        try:
            checkpoint.save_checkpoint(
                checkpoint.Checkpoint(
                    quantized.name,
                    quantized.labels,
                    quantized.preprocessing,
                    quantized.openvino_model.state(),
                    facts,
                ),
                out,
            )
        except OSError as error:
            raise click.ClickException(f"{out} cannot be written: {error.strerror}") from error
    for path, reason in dataset.unreadable.items():
        click.echo(f"skipped {click.format_filename(path)}: {reason}", err=True)
    click.echo(
        f"{click.format_filename(out)}: {out.stat().st_size / 1e6:.1f} MB; its best class is that of {model} "
        f"for {result.agreement:.1%} of {len(dataset):,} images"
    )
