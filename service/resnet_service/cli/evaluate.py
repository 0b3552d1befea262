"""`resnet-service evaluate` and `activations`: measure and visualize what a model does with images."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resnet_service.cli.common import (
    FiniteFloat,
    batch_size_option,
    execution_options,
    exit_on_service_error,
    json_option,
    load_chosen_model,
    load_on_device,
    model_option,
    report_skipped,
)
from resnet_service.cli.outputs import output_option

if TYPE_CHECKING:
    from resnet_service.models import ModelSource


@click.command(short_help="Measure a model's accuracy on labeled images.")
@model_option
@click.option("--data", required=True, help="Labeled images, as for train; the test images are used.")
@click.option(
    "--test-share",
    type=FiniteFloat(0, 1, min_open=True),
    default=1.0,
    help="Share of each class to use if --data has no test/ or val/ directory; the same share as for train "
    "selects the same images.",
)
@click.option("--mirrored", is_flag=True, help="Average with the mirror image (test-time augmentation).")
@execution_options
@batch_size_option(64)
@json_option("Print one JSON object.")
def evaluate(
    model: "ModelSource",
    data: str,
    test_share: float,
    mirrored: bool,
    batch_size: int,
    as_json: bool,
    **execution: Any,
) -> None:
    """Measure a model's accuracy on labeled images, with the runtime and precision that serve it.

    Folders are named after classes of the model or, for ImageNet, WordNet ids; a model may have more classes.
    Prints the accuracy of each class, the most frequent confusions, and the shares of images whose class is
    the best one (top-1) and among the best five (top-5).

    \b
    Examples:
      resnet-service evaluate --model mine.safetensors --data cifar10
      resnet-service evaluate --model efficientnet_lite0 --data imagenette
    """
    from resnet_service.training.data import load_test_dataset
    from resnet_service.training.evaluate import evaluate as evaluate_model

    with exit_on_service_error():
        loaded = load_on_device(model, **execution)
        labels, preprocessing = loaded.model.labels, loaded.model.preprocessing
        dataset = load_test_dataset(data, labels, preprocessing, test_share=test_share)
        result = evaluate_model(
            loaded.model, loaded.runtime, dataset, mirrored=mirrored, batch_size=batch_size
        )
    confusions = result.most_frequent_confusions()
    if as_json:
        content = {
            "model": loaded.model.name,
            "accuracy": result.accuracy,
            "top5_accuracy": result.top5_accuracy,
            "images": len(dataset),
            "accuracy_by_class": result.accuracy_by_class(),
            "confusions": [asdict(confusion) for confusion in confusions],
            "unreadable": {str(path): reason for path, reason in dataset.unreadable.items()},
            "device": loaded.runtime.device,
            "precision": loaded.runtime.precision,
        }
        click.echo(json.dumps(content))
        return
    for label, share in result.accuracy_by_class().items():
        click.echo(f"{label:24} {share:7.2%}")
    if confusions:
        click.echo("\nMost frequent confusions (class, predicted class, images):")
    for confusion in confusions:
        click.echo(f"{confusion.label:24} {confusion.predicted:24} {confusion.count:7,}")
    report_skipped(dataset.unreadable)
    top5 = "" if result.top5_accuracy is None else f", top-5 {result.top5_accuracy:.2%}"
    click.echo(f"\n{loaded}: top-1 {result.accuracy:.2%}{top5} of {len(dataset):,} images")


@click.command(short_help="Draw the activation maps of a model's layers for an image.")
@click.argument("image", metavar="INPUT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@model_option
@click.option(
    "--layer",
    "layers",
    multiple=True,
    show_default="conv1, conv2, layer1, layer2 and layer3, if the network has them",
    help="Name of a module to draw; may be repeated.",
)
@output_option("Directory to write one PNG per layer to.", directory=True)
@json_option("Print one JSON object per layer and line.")
def activations(
    image: Path, model: "ModelSource", layers: tuple[str, ...], output: Path, as_json: bool
) -> None:
    """Draw the activation maps of an image file: one grid of channels per layer.

    \b
    Examples:
      resnet-service activations dog.jpg --output maps
      resnet-service activations dog.jpg --model resnet50 --layer layer4 -o maps
    """
    from resnet_service.images import decode_image
    from resnet_service.training import require_plots
    from resnet_service.training.activations import draw_activations

    with exit_on_service_error():
        require_plots()
        loaded = load_chosen_model(model)
        crop = decode_image(image.read_bytes(), loaded.preprocessing)
        for path, shape in draw_activations(loaded, crop, output, layers).items():
            if as_json:
                click.echo(json.dumps({"layer": path.stem, "file": str(path), "shape": shape}))
            else:
                click.echo(f"{click.format_filename(path)}: {list(shape)}")
