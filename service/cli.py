"""The command line: parses and calls. Heavy imports stay inside, so that --help answers at once."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from service import __version__

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="resnet-service")
def main() -> None:
    """Classify images with a ResNet: serve, train."""


class _ConfiguredBySettings(click.Command):
    """A command with one option for each field of Settings, which is imported only when it is used."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of Settings and those of the command."""
        from service.settings import Settings

        prefix = Settings.model_config["env_prefix"]
        options = [_option(name, field, prefix) for name, field in Settings.model_fields.items()]
        return [*options, *super().get_params(ctx)]


def _option(name: str, field: "FieldInfo", prefix: str) -> click.Option:
    """Make a field's option; its value is read by pydantic, from here as from the environment."""
    flag = name.replace("_", "-")
    default = "none" if field.default is None else str(field.default).lower()
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    metavar = "|".join(choices) or flag.rsplit("-", 1)[-1].upper()
    switch = field.annotation is bool
    return click.Option(
        [f"--{flag}/--no-{flag}" if switch else f"--{flag}", name],
        type=bool if switch else str,
        metavar=None if switch else metavar,
        default=None,  # not given: the environment or the field's own default counts
        help=f"{field.description}  [env: {prefix}{name.upper()}; default: {default}]",
    )


@main.command(cls=_ConfiguredBySettings)
def serve(**given: Any) -> None:
    """Serve a model over HTTP.

    \b
    Examples:
      resnet-service serve --model bundled
      resnet-service serve --model resnet50 --device cuda --max-batch 64
      SERVICE_PORT=9000 resnet-service serve --model runs/mine.safetensors
    """
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise click.UsageError("\n".join(problems)) from error

    from service import logs
    from service.api import server
    from service.api.service import load
    from service.errors import ServiceError

    logs.configure(settings.log_level, settings.log_format)
    try:
        service = load(settings)
    except ServiceError as error:
        click.echo(f"resnet-service: {error}", err=True)
        sys.exit(3)
    sys.exit(server.run(service))


@main.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder with train/CLASS/* and test/CLASS/*.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Checkpoint to write (.safetensors); its card goes beside it.",
)
@click.option("--network", default="cifar-resnet10", help="Network to train.")
@click.option(
    "--size", type=click.IntRange(8, 4096), default=32, help="Side of the network's input, in pixels."
)
@click.option(
    "--epochs", type=click.IntRange(1), default=24, help="Times to go through the training pictures."
)
@click.option("--batch-size", type=click.IntRange(2), default=256, help="Pictures in a step.")
@click.option(
    "--max-lr",
    type=click.FloatRange(0, min_open=True),
    default=0.2,
    help="Peak of the learning rate (OneCycleLR).",
)
@click.option("--seed", default=1, help="Seed of initialisation, order and augmentation.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps.")
def train(data: Path, out: Path, network: str, size: int, device: str, **options: Any) -> None:
    """Train a network on folders of pictures.

    \b
    Example, which made the bundled model:
      resnet-service train --data cifar10 --out cifar10.safetensors
    """
    from service.errors import ServiceError
    from service.training.loop import Options
    from service.training.run import run

    try:
        trained = run(data, out, network=network, size=size, device=device, options=Options(**options))
    except ServiceError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {out}: {trained.training['accuracy']:.2%} on the test pictures")
