"""`resnet-service serve`, with an option for every field of Settings."""

import signal
import sys
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class _ConfiguredBySettings(click.Command):
    """A command with one option for each field of Settings, which is imported only when it is used."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of Settings and those of the command."""
        from resnet_service.settings import ENVIRONMENT_ONLY, Settings

        prefix = Settings.model_config["env_prefix"]
        options = [
            _option(name, field, prefix)
            for name, field in Settings.model_fields.items()
            if name not in ENVIRONMENT_ONLY
        ]
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


@click.command(cls=_ConfiguredBySettings)
def serve(**given: Any) -> None:
    """Serve a model over HTTP.

    \b
    Examples:
      resnet-service serve --model bundled
      resnet-service serve --model resnet50 --devices cuda:0,cuda:1 --max-batch 64
      RESNET_SERVICE_PORT=9000 resnet-service serve --model runs/mine.safetensors
    """
    # A container's first process ignores SIGTERM unless it says otherwise, and loading can take minutes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    from pydantic import ValidationError

    from resnet_service.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise click.UsageError("\n".join(problems)) from error

    from resnet_service.log_config import configure_logging
    from resnet_service.malloc import limit_malloc_arenas

    limit_malloc_arenas()  # before the imports below start threads
    from resnet_service.errors import ServiceError
    from resnet_service.server.run import run_server
    from resnet_service.server.state import build_app_state

    configure_logging(settings.log_level, settings.log_format)
    try:
        service = build_app_state(settings)
    except ServiceError as error:
        click.echo(f"resnet-service: {error}", err=True)
        sys.exit(3)
    sys.exit(run_server(service))
