"""`resnet-service quantize`: an int8 model from a float one and a folder of pictures."""

from pathlib import Path

import click

from service.cli.refusals import refusals


@click.command()
@click.argument("model")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of pictures like those to come; looked through with its subfolders.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@click.option("--samples", type=click.IntRange(1), default=300, help="Pictures to calibrate on, at most.")
@click.option("--weights", help="Weights for a torchvision classifier, as for serve.")
def quantize(model: str, images: Path, out: Path, samples: int, weights: str | None) -> None:
    """Quantise a MODEL to int8, calibrated on pictures; the result is served like any model, on CPUs.

    \b
    Examples:
      resnet-service quantize resnet50 --images photos --out resnet50-int8.safetensors
      resnet-service serve --model resnet50-int8.safetensors
    """
    from service import models
    from service.models import checkpoint
    from service.quantisation import calibration, quantise

    with refusals():
        if not out.absolute().parent.is_dir():
            raise click.UsageError(f"there is no folder {out.absolute().parent} to write to")
        loaded = models.load(model, weights)
        dataset = calibration(images, loaded, samples)
        result = quantise(loaded, dataset.pictures.permute(0, 2, 3, 1).numpy())
        quantised = result.model
        facts = {"quantised_from": model, "calibrated_on": len(dataset), "agreement": result.agreement}
        assert quantised.graph is not None
        try:
            checkpoint.save(
                checkpoint.Checkpoint(
                    quantised.name, quantised.labels, quantised.preprocessing, quantised.graph.state(), facts
                ),
                out,
            )
        except OSError as error:
            raise click.ClickException(f"{out} cannot be written: {error.strerror}") from error
    for path, reason in dataset.unreadable.items():
        click.echo(f"skipped {click.format_filename(path)}: {reason}", err=True)
    click.echo(
        f"{click.format_filename(out)}: {out.stat().st_size / 1e6:.1f} MB; its best class is that of {model} "
        f"for {result.agreement:.1%} of {len(dataset):,} pictures"
    )
