"""`resnet-service train`: train a network and write a checkpoint."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import click

from resnet_service.cli.common import (
    DEVICE_HELP,
    CommaSeparated,
    FiniteFloat,
    exit_on_service_error,
    json_option,
    report_skipped,
)
from resnet_service.cli.outputs import output_option

_SHARE: Final = FiniteFloat(0, 1, max_open=True)


_NETWORKS: Final = """
    lenet lenet-wide cifar-resnet10 cifar-resnet18 efficientnet_lite0 alexnet convnext_base convnext_large
    convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201 efficientnet_b0
    efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t
    mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf
    regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d
    resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
    squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13
    vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2
    wide_resnet50_2
"""
"""All networks, for --help, which imports neither torch nor torchvision."""


@click.command(
    short_help="Train a network and write a checkpoint.", epilog=f"Networks: {', '.join(_NETWORKS.split())}."
)
@click.option(
    "--data",
    required=True,
    help="cifar10, or a directory with train/CLASS and test/CLASS (or val/CLASS), or with CLASS only; or a "
    "prediction log, a directory or a URI, with a column true_class.",
)
@output_option("Directory of the run.", directory=True)
@click.option(
    "--network",
    show_default="that of --weights, or resnet18",
    help="Network to train; its names are listed below.",
)
@click.option(
    "--weights",
    show_default="random",
    help="Start from a model: cifar10, efficientnet_lite0, a torchvision classifier, or the checkpoint of a "
    "run. Or, with --network: a file or URL with a state dict, or the name of a published set.",
)
@click.option("--freeze", is_flag=True, help="Train only the new last layer; needs --weights.")
@click.option(
    "--size",
    type=click.IntRange(8, 4096),
    show_default="the network's own",
    help="Side of the input in pixels.",
)
@click.option(
    "--test-share",
    type=_SHARE,
    default=0.2,
    help="Share of each class to test on if --data has no test/ or val/ directory.",
)
@click.option("--epochs", type=click.IntRange(1), help="Number of passes over the training images.")
@click.option("--batch-size", type=click.IntRange(2), help="Number of images per step.")
@click.option("--max-lr", type=FiniteFloat(0, min_open=True), help="Peak learning rate of SGD (OneCycleLR).")
@click.option(
    "--muon-lr", type=FiniteFloat(0), help="Peak learning rate of Muon for convolutions; 0 uses SGD for them."
)
@click.option("--momentum", type=_SHARE, help="Nesterov momentum of SGD.")
@click.option("--weight-decay", type=FiniteFloat(0), help="Weight decay of SGD.")
@click.option("--label-smoothing", type=_SHARE, help="Label smoothing of the loss; 0 disables it.")
@click.option("--ema", type=_SHARE, help="Decay of the exponential moving average of weights; 0 disables it.")
@click.option("--flip/--no-flip", default=None, help="Mirror each image in every other epoch.")
@click.option("--shift", type=FiniteFloat(0, 0.5), help="Maximum shift, as a share of the side.")
@click.option("--cutout", type=FiniteFloat(0, 1), help="Side of the erased square, as a share of the side.")
@click.option("--progressive/--no-progressive", default=None, help="Use smaller images in the first epochs.")
@click.option(
    "--seeds",
    type=CommaSeparated(minimum=0),
    default="1",
    help="Seed of the random numbers; several, separated by commas, are one run each.",
)
@click.option("--device", default="auto", help=DEVICE_HELP)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"], case_sensitive=False),
    default="auto",
    help="Precision of autocast; auto is bf16 if the hardware supports it natively.",
)
@click.option(
    "--store",
    type=click.Choice(["fp32", "fp16"], case_sensitive=False),
    default="fp32",
    help="Precision of the weights in the checkpoint.",
)
@click.option("--compile", is_flag=True, help="Compile the network with torch.compile.")
@click.option("--deterministic", is_flag=True, help="Use only operations that are equal in every run.")
@click.option("--resume", is_flag=True, help="Continue the run in --output if there is one.")
@json_option("Print one JSON object per seed and line.")
def train(
    data: str,
    output: Path,
    network: str | None,
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
    as_json: bool,
    **recipe_options: Any,
) -> None:
    """Train a network and write a checkpoint that `serve --model` accepts.

    With few images, start from a model (--weights); --freeze is the quickest way. Options from --epochs to
    --progressive override the network's recipe; docs/training.md lists the recipes.

    \b
    Examples:
      resnet-service train --data photos --weights resnet18 --freeze -o runs/x
      resnet-service train --data photos --weights resnet50 -o runs/x
      resnet-service train --data cifar10 --network lenet --seeds 1,2 -o runs/y
      resnet-service serve --model runs/x/model.safetensors
    """
    from resnet_service.devices import choose_device, training_precision
    from resnet_service.training import require_plots
    from resnet_service.training.data import load_dataset
    from resnet_service.training.recipes import resolve_setup
    from resnet_service.training.run import RunConfig, check_earlier_run, run
    from resnet_service.training.run_dir import RunDirectory

    if freeze and not weights:
        raise click.UsageError("--freeze needs --weights: a network with random weights has learned nothing")
    with exit_on_service_error():
        require_plots()
        target = choose_device(device)
        setup = resolve_setup(network, weights_source=weights, size=size)
        overrides = {name: value for name, value in recipe_options.items() if value is not None}
        recipe = replace(setup.recipe, **overrides)
        config = RunConfig(
            network=setup.network,
            data=data,
            training=recipe,
            size=setup.preprocessing.crop,
            pretrained=setup.weights.name if setup.weights else None,
            frozen=freeze,
            test_share=test_share,
            device=str(target),
            precision=training_precision(target) if precision == "auto" else precision,  # type: ignore[arg-type]
            store=store,
            compile=compile,
            deterministic=deterministic,
        )
        runs = {
            seed: (
                replace(config, training=replace(recipe, seed=seed)),
                RunDirectory(output / f"seed-{seed}" if len(seeds) > 1 else output),
            )
            for seed in seeds
        }
        for seed_config, directory in runs.values():  # all before the first one is trained
            check_earlier_run(seed_config, directory, resume=resume)
        # Loads once for all seeds, and not at all if every run is finished.
        load = cache(lambda: load_dataset(data, setup.preprocessing, test_share=test_share))
        accuracies = []
        for seed, (seed_config, directory) in runs.items():
            try:
                log = run(seed_config, setup, directory, load, resume=resume)
            except KeyboardInterrupt:
                hint = f"; --resume continues the run in {directory.path}" if directory.is_resumable() else ""
                click.echo(f"\ninterrupted{hint}", err=True)
                sys.exit(130)
            accuracies.append(log["accuracy"])
            _print_log(log, directory.model, seed, as_json)
    if len(accuracies) > 1 and not as_json:
        _print_spread(accuracies)


def _print_log(log: Mapping[str, Any], model: Path, seed: int, as_json: bool) -> None:
    unreadable = log["unreadable"]
    if as_json:
        facts = {key: log[key] for key in ("accuracy", "accuracy_mirrored", "accuracy_by_class", "seconds")}
        line = {"seed": seed, "output": str(model), "images": log["images"], **facts}
        click.echo(json.dumps({**line, "warnings": log.get("warnings", []), "unreadable": unreadable}))
        return
    report_skipped(unreadable)
    click.echo(
        f"{model}: {log['accuracy']:.2%} on {log['images']['test']:,} test images, seed {seed}, "
        f"{log['seconds']:.0f} s"
    )


def _print_spread(accuracies: Sequence[float]) -> None:
    click.echo(
        f"{len(accuracies)} seeds: mean {statistics.mean(accuracies):.2%}, standard deviation "
        f"{statistics.stdev(accuracies) * 100:.2f} points, {min(accuracies):.2%} to {max(accuracies):.2%}"
    )
