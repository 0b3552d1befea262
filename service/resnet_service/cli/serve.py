"""`resnet-service serve`, with one option per field of Settings, and `resnet-service ui`."""

import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from resnet_service.cli.common import echo_error
from resnet_service.cli.surroundings import require_open_files

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


class _SettingsCommand(click.Command):
    """A command with one option per field of Settings, which is imported when the options are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options generated from Settings and the command's own (click calls this hook)."""
        from resnet_service.settings import ENVIRONMENT_ONLY, Settings

        prefix = Settings.model_config["env_prefix"]
        options = [
            _option(name, field, prefix)
            for name, field in Settings.model_fields.items()
            if name not in ENVIRONMENT_ONLY
        ]
        return [*options, *super().get_params(ctx)]


def _option(name: str, field: "FieldInfo", prefix: str) -> click.Option:
    """Return the option for a field. pydantic parses its value, as it parses environment variables."""
    flag = name.replace("_", "-")
    default = "" if field.default in (None, "") else f"; default: {str(field.default).lower()}"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    metavar = "|".join(choices) or _metavar(field.annotation)
    is_switch = field.annotation is bool
    return click.Option(
        [f"--{flag}/--no-{flag}" if is_switch else f"--{flag}", name],
        type=bool if is_switch else str,
        metavar=None if is_switch else metavar,
        default=None,  # unset: the environment variable or the field's own default applies
        help=f"{field.description}  [env: {prefix}{name.upper()}{default}]",
    )


def _metavar(annotation: Any) -> str:
    """Return click's word for the type of a field, of which None may be one member."""
    members = get_args(annotation) or (annotation,)
    words = {int: "INTEGER", float: "FLOAT", Path: "FILE"}
    return next((word for type_, word in words.items() if type_ in members), "TEXT")


@click.command(cls=_SettingsCommand, short_help="Serve a model over HTTP.")
def serve(**options: Any) -> None:
    """Serve a model over HTTP.

    \b
    Examples:
      resnet-service serve
      resnet-service serve --model resnet50 --device cuda:0,cuda:1 --max-batch 64
      RESNET_SERVICE_PORT=9000 resnet-service serve --model my.safetensors

    SIGTERM and Ctrl-C finish accepted requests, SIGHUP reloads the model
    (with a terminal, it finishes too).

    Exit status: 0 after SIGTERM or Ctrl-C, 1 address not available or device
    failed, 2 invalid setting, 3 model, device or extra not available.
    """
    from resnet_service.server.signals import end_at_signals

    end_at_signals()
    require_open_files()
    gc.disable()  # until everything is loaded: eight collections of what stays take 0.7 s of 3.9

    from pydantic import ValidationError

    from resnet_service.settings import Settings, describe_errors

    flags = {name: value for name, value in options.items() if value is not None}
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        raise click.UsageError("\n".join(describe_errors(error, flags))) from error

    from resnet_service.log_config import configure_logging
    from resnet_service.malloc import limit_malloc_arenas

    limit_malloc_arenas()  # before the imports below start threads
    from resnet_service.errors import AddressUnavailableError, InvalidAPIKeysError, ServiceError
    from resnet_service.server.listener import bind_listeners

    configure_logging(settings.log_level, settings.log_format)
    try:
        listeners = bind_listeners(settings)
        from resnet_service.server.run import run_server  # takes seconds, and a port in use needs none
        from resnet_service.server.state import build_app_state, count_workers

        state = build_app_state(settings, workers=count_workers(settings))
    except ServiceError as error:
        echo_error(f"resnet-service: {error}")
        statuses = {AddressUnavailableError: 1, InvalidAPIKeysError: 2}
        sys.exit(statuses.get(type(error), 3))
    sys.exit(run_server(state, listeners))


@click.command(short_help="Open a web page that classifies images with a running service.")
@click.option("--url", default="http://localhost:8000", help="URL of the service that the page uses.")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all interfaces.")
@click.option("--port", type=click.IntRange(0, 65535), default=8501, help="Port to listen on.")
def ui(url: str, host: str, port: int) -> None:
    """Serve a web page: upload images, see their classes, and benchmark the model.

    The page uses a running service, which may be on another machine. If the service requires an API key, set
    RESNET_SERVICE_API_KEY.

    \b
    Examples:
      resnet-service ui
      resnet-service ui --url http://gpu-host:8000 --port 9000
    """
    if find_spec("streamlit") is None:
        raise click.ClickException("the web page needs Streamlit: make install EXTRAS=ui")
    page = Path(__file__).parents[1] / "integrations" / "streamlit_page.py"
    command = [sys.executable, "-m", "streamlit", "run", str(page), "--server.headless", "true"]
    options = ["--server.address", host, "--server.port", str(port), "--browser.gatherUsageStats", "false"]
    options += ["--client.toolbarMode", "viewer"]  # hides the menu for page developers
    from resnet_service.settings import PAGE_URL_VARIABLE

    os.environ[PAGE_URL_VARIABLE] = url
    os.execv(sys.executable, [*command, *options])  # noqa: S606
