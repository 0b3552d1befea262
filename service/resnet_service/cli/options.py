"""Options that several commands share, and what becomes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from resnet_service.devices import Precision
    from resnet_service.models import Model
    from resnet_service.runtimes import Runtime
    from resnet_service.runtimes.selection import RuntimeName

Command = TypeVar("Command", bound=Callable[..., Any])

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "int8")
RUNTIMES = ("torch", "openvino")


def model_option(command: Command) -> Command:
    """Add --model and --weights, as serve has them."""
    for option in (
        click.option("--weights", help="Weights for a torchvision classifier, as for serve."),
        click.option(
            "--model",
            default="resnet50",
            help="A torchvision classifier, a checkpoint's path, or 'bundled'.",
        ),
    ):
        command = option(command)
    return command


def execution_options(command: Command) -> Command:
    """Add --device, --precision and --runtime."""
    for option in (
        click.option(
            "--runtime", type=click.Choice(("auto", *RUNTIMES)), default="auto", help="As for serve."
        ),
        click.option(
            "--precision", type=click.Choice(("auto", *PRECISIONS)), default="auto", help="As for serve."
        ),
        click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Opened:
    """A model and what runs it, one batch at a time."""

    model: "Model"
    runtime: "Runtime"

    def __str__(self) -> str:
        """Say what runs where."""
        runtime = self.runtime
        return f"{self.model.name} on {runtime.device}, {runtime.precision}, {runtime.name}"


def open_model(
    model: str,
    weights: str | None,
    device: str,
    precision: "Precision | Literal['auto']",
    runtime: "RuntimeName",
) -> Opened:
    """Load a model and put it on one device; raises ServiceError where that cannot be."""
    from resnet_service.devices import choose_device
    from resnet_service.models import load_model
    from resnet_service.runtimes.selection import create_runtimes

    chosen = choose_device(device)  # first: a download takes longer
    loaded = load_model(model, weights)
    [opened] = create_runtimes(loaded, [chosen], name=runtime, precision=precision, streams_per_device=1)
    return Opened(loaded, opened)
