"""`resnet-service train`, `evaluate` and `activations`."""

import json
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_service.cli.errors import exit_on_service_error

if TYPE_CHECKING:
    from resnet_service.devices import Precision


class _Number(click.FloatRange):
    """A range without the number that is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, and reject nan, which is neither above nor below any other."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


_SHARE = _Number(0, 1, max_open=True)


class _SeveralSeeds(click.Command):
    """A command whose --seed takes one or more numbers: --seed 1 2 3."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write --seed 1 2 3 as --seed 1 --seed 2 --seed 3, which is what click understands."""
        spread: list[str] = []
        for arg in args:
            name, _, value = arg.partition("=")
            if name == "--seed" and value:
                spread += [name, value]
            elif arg.isdecimal() and spread[-2:-1] == ["--seed"]:
                spread += ["--seed", arg]
            else:
                spread.append(arg)
        return super().parse_args(ctx, spread)


@click.command(cls=_SeveralSeeds)
@click.option(
    "--data",
    required=True,
    help="cifar10, or a folder with train/CLASS and test/CLASS (or val/), or CLASS alone.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run."
)
@click.option(
    "--network",
    default="resnet18",
    help="lenet, lenet-wide, resnet18, cifar-resnet10, or any torchvision classifier.",
)
@click.option("--pretrained", is_flag=True, help="TrainingSetup from torchvision's published weights.")
@click.option("--weights", help="TrainingSetup from a file's, a URL's or a published set's weights.")
@click.option("--freeze", is_flag=True, help="Train only the new last layer.")
@click.option(
    "--size", type=click.IntRange(8, 4096), help="Side of the input in pixels.  [default: the network's own]"
)
@click.option(
    "--test-share",
    type=_SHARE,
    default=0.2,
    help="Share of each class to test on, where the folder has no test/ or val/.",
)
@click.option("--epochs", type=click.IntRange(1), help="Times to go through the training images.")
@click.option("--batch-size", type=click.IntRange(2), help="Images in a step.")
@click.option("--max-lr", type=_Number(0, min_open=True), help="Peak of the learning rate (OneCycleLR).")
@click.option("--muon-lr", type=_Number(0), help="Peak for convolutions, under Muon; 0 for SGD.")
@click.option("--momentum", type=_Number(0, 1, max_open=True), help="Of SGD, Nesterov's.")
@click.option("--weight-decay", type=_Number(0), help="Of SGD.")
@click.option("--label-smoothing", type=_Number(0, 1, max_open=True), help="0 for none.")
@click.option("--ema", type=_Number(0, 1, max_open=True), help="Averaging of weights; 0 for none.")
@click.option("--flip/--no-flip", default=None, help="Mirror half of the images.")
@click.option("--shift", type=_Number(0, 0.5), help="Furthest shift, as a share of the side.")
@click.option("--cutout", type=_Number(0, 1), help="Side of the greyed square, as a share.")
@click.option("--progressive/--no-progressive", default=None, help="Begin with smaller images.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, 2**63 - 1),
    multiple=True,
    default=[1],
    help="One or more: --seed 1 2 3.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", help="Of autocast.")
@click.option(
    "--store", type=click.Choice(["fp32", "fp16"]), default="fp32", help="Precision of the weights written."
)
@click.option("--compile", is_flag=True, help="Compile the network first (torch.compile).")
@click.option("--deterministic", is_flag=True, help="Reject operations that differ from run to run.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, if there is one.")
def train(
    data: str,
    out: Path,
    network: str,
    pretrained: bool,
    weights: str | None,
    freeze: bool,
    size: int | None,
    test_share: float,
    seeds: tuple[int, ...],
    device: str,
    precision: str,
    store: str,
    compile: bool,  # noqa: A002
    deterministic: bool,
    resume: bool,
    **options: Any,
) -> None:
    """Train a network and write a checkpoint that `serve --model` takes.

    TrainingConfig of the training itself that are not given are the network's own recipe.

    \b
    Examples:
      resnet-service train --data cifar10 --out runs/resnet18
      resnet-service train --data cifar10 --network lenet --seed 1 2 3 --out runs/lenet
      resnet-service train --data photos --network resnet50 --pretrained --out runs/photos
      resnet-service serve --model runs/photos/model.safetensors
    """
    from resnet_service.devices import choose_device, training_precision
    from resnet_service.training import data as images
    from resnet_service.training.recipes import resolve_setup
    from resnet_service.training.run import RunConfig, run
    from resnet_service.training.run_dir import RunDirectory

    if freeze and not (pretrained or weights):
        raise click.UsageError("--freeze needs --pretrained or --weights: random weights must learn")
    if pretrained and weights:
        raise click.UsageError("give --pretrained or --weights, not both")
    with exit_on_service_error():
        begin = resolve_setup(network, weights_source="DEFAULT" if pretrained else weights, size=size)
        target = choose_device(device)
        recipe = replace(begin.recipe, **{key: value for key, value in options.items() if value is not None})
        request = RunConfig(
            network=begin.network,
            data=data,
            options=recipe,
            size=begin.preprocessing.crop,
            pretrained=begin.pretrained,
            frozen=freeze,
            test_share=test_share,
            device=str(target),
            precision=training_precision(target) if precision == "auto" else precision,  # type: ignore[arg-type]
            store=store,
            compile=compile,
            deterministic=deterministic,
        )
        # Once for all seeds, and not at all where there is nothing left to do.
        load = cache(lambda: images.load_dataset(data, begin.preprocessing, test_share=test_share))
        accuracies = []
        for seed in dict.fromkeys(seeds):
            folder = RunDirectory(out / f"seed-{seed}" if len(seeds) > 1 else out)
            asked = replace(request, options=replace(recipe, seed=seed))
            try:
                log = run(asked, begin, folder, load, resume=resume)
            except KeyboardInterrupt:
                kept = f"; --resume goes on with what is kept in {folder.path}" if folder.started() else ""
                click.echo(f"\ninterrupted{kept}", err=True)
                sys.exit(130)
            accuracies.append(log["accuracy"])
            _report(log, folder.model, seed)
    if len(accuracies) > 1:
        click.echo(
            f"{len(accuracies)} seeds: {statistics.mean(accuracies):.2%} on average, standard deviation "
            f"{statistics.stdev(accuracies) * 100:.2f} points, {min(accuracies):.2%} to {max(accuracies):.2%}"
        )


def _report(log: Mapping[str, Any], model: Path, seed: int) -> None:
    skipped = log["unreadable"]
    for path, reason in list(skipped.items())[:10]:
        click.echo(f"skipped {click.format_filename(path)}: {reason}", err=True)
    if skipped:
        click.echo(f"{len(skipped)} images could not be read and were skipped", err=True)
    click.echo(
        f"{model}: {log['accuracy']:.2%} on {log['images']['test']:,} test images, seed {seed}, "
        f"{log['seconds']:.0f} s"
    )


@click.command()
@click.argument("model")
@click.option("--data", required=True, help="As for train; its test images are used.")
@click.option(
    "--test-share",
    type=_Number(0, 1, min_open=True),
    default=1.0,
    help="Share that train set apart, for a folder without test/ or val/.",
)
@click.option("--mirrored", is_flag=True, help="Add each image's mirror image (test-time flip).")
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Images in a batch.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "tf32", "bf16", "fp16", "int8"]),
    default="auto",
    help="As for serve.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    model: str,
    data: str,
    test_share: float,
    mirrored: bool,
    batch_size: int,
    device: str,
    precision: "Precision",
    as_json: bool,
) -> None:
    """Measure a MODEL's accuracy on labeled images, as it would be served.

    \b
    Examples:
      resnet-service evaluate runs/resnet18/model.safetensors --data cifar10
      resnet-service evaluate bundled --data path/to/cifar10 --mirrored
    """
    from resnet_service.devices import choose_device
    from resnet_service.models import load_model
    from resnet_service.runtimes.selection import create_runtimes
    from resnet_service.training import data as images
    from resnet_service.training.evaluate import evaluate as measure

    with exit_on_service_error():
        loaded = load_model(model)
        target = choose_device(device)
        [runtime] = create_runtimes(loaded, [target], precision=precision, streams_per_device=1)
        dataset = images.load_test_dataset(data, loaded.labels, loaded.preprocessing, test_share=test_share)
        result = measure(loaded, runtime, dataset, mirrored=mirrored, batch_size=batch_size)
    if as_json:
        facts = {
            "model": model,
            "accuracy": result.accuracy,
            "images": len(dataset),
            "accuracy_by_class": result.by_class(),
            "unreadable": dict(dataset.unreadable),
            "device": runtime.device,
            "precision": runtime.precision,
        }
        click.echo(json.dumps(facts))
        return
    for label, share in result.by_class().items():
        click.echo(f"{label:24} {share:7.2%}")
    for path, reason in dataset.unreadable.items():
        click.echo(f"skipped {click.format_filename(path)}: {reason}", err=True)
    click.echo(
        f"{model}: {result.accuracy:.2%} of {len(dataset):,} images, {runtime.precision} on {runtime.device}"
    )


@click.command()
@click.argument("model")
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the images."
)
@click.option(
    "--layer", "layers", multiple=True, help="Module to draw.  [default: conv1, layer1, layer2, layer3]"
)
def activations(model: str, image: Path, out: Path, layers: tuple[str, ...]) -> None:
    """Draw what the layers of a MODEL make of an IMAGE, a grid of channels for each layer.

    \b
    Example:
      resnet-service activations runs/resnet18/model.safetensors dog.jpg --out maps
    """
    from resnet_service.images import decode_image
    from resnet_service.models import load_model
    from resnet_service.training.activations import draw

    with exit_on_service_error():
        loaded = load_model(model)
        crop = decode_image(image.read_bytes(), loaded.preprocessing)
        for path, shape in draw(loaded, crop, out, layers).items():
            click.echo(f"{path}: {list(shape)}")
