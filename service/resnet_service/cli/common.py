"""Shared parts of the commands: grouped help, options, parameter types, model loading and errors.

Imports only click at module level; torch and the rest of the package are imported when they are used.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar, cast

import click

from resnet_service.cli.surroundings import explain_shortages, open_closed_streams
from resnet_service.files import set_folder_variables

if TYPE_CHECKING:
    from resnet_service.devices import Precision
    from resnet_service.models import Model, ModelSource
    from resnet_service.runtimes import Runtime
    from resnet_service.runtimes.selection import RuntimeName

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_MODEL: Final = "auto"
MODEL_VARIABLE: Final = "RESNET_SERVICE_MODEL"
"""The variable that sets the model of `serve`, and of all other commands."""
PRECISIONS: Final = ("fp32", "tf32", "bf16", "fp16", "int8")
RUNTIMES: Final = ("torch", "openvino", "onnxruntime")
DEVICE_HELP: Final = "Device: auto, cpu, mps, cuda or cuda:N."
PRECISION_HELP: Final = "Number format of the network; auto is the fastest one that does not reduce accuracy."
RUNTIME_HELP: Final = "Library that runs the network."

_MAX_SKIPPED_SHOWN: Final = 10
_MAX_DIGITS: Final = 19
"""Those of 2^63-1; int() raises ValueError from 4,301 digits on."""


class CommandGroups(click.Group):
    """A click group whose help lists its commands under headings, in the order of `sections`."""

    def __init__(self, *, sections: Mapping[str, Sequence[click.Command]], **attributes: Any) -> None:
        commands = [command for section in sections.values() for command in section]
        super().__init__(commands=commands, **attributes)
        self._sections = sections

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run a command (the entry point of the program), in surroundings that may lack something."""
        open_closed_streams()
        with explain_shortages():
            set_folder_variables()
            try:
                status = super().main(*args, **{**extra, "standalone_mode": False})
            except click.Abort:
                echo_error("Aborted!")
                status = 1
            except click.ClickException as error:
                with suppress(OSError):  # the status counts, if the message cannot be written
                    error.show()
                status = error.exit_code
        sys.exit(status if isinstance(status, int) else 0)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list per section (click calls this hook for --help)."""
        width = max(map(len, self.commands))
        limit = formatter.width - 6 - width  # 6 is click's indentation and spacing
        for heading, commands in self._sections.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(f"{command.name:{width}}", command.get_short_help_str(limit)) for command in commands]
                )


class CommaSeparated(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A comma-separated list of words, choices in any case, or integers from `minimum` on; no duplicates."""

    name = "list"

    def __init__(self, choices: Iterable[str] | None = None, *, minimum: int | None = None) -> None:
        self._choices = None if choices is None else tuple(choices)
        self._minimum = minimum

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Return the elements as a tuple; an invalid element is a usage error."""
        if isinstance(value, tuple):
            return value
        text = str(value) if self._choices is None else str(value).lower()
        words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
        if "" in words:
            self.fail(f"{value!r} has an empty element", param, ctx)
        if self._minimum is not None:
            return tuple(self._integer(word, self._minimum, param, ctx) for word in words)
        for word in words:
            if self._choices is not None and word not in self._choices:
                self.fail(f"{word!r} is not one of {', '.join(self._choices)}", param, ctx)
        return words

    def _integer(
        self, word: str, minimum: int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        is_integer = word.isdecimal() and len(word) <= _MAX_DIGITS
        if not (is_integer and minimum <= int(word) < 2**63):
            self.fail(f"{word!r} is not an integer from {minimum} to 2^63-1", param, ctx)
        return int(word)


class FiniteFloat(click.FloatRange):
    """A float range that rejects nan and infinity: nan passes every comparison of click's range check."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; a usage error if it is not finite or out of range."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def model_option(command: Command) -> Command:
    """Add --model and the options for its weights, labels and preprocessing, as for `serve`.

    The command takes them as one argument `model`, a `ModelSource`.
    """

    @wraps(command)
    def with_source(
        *arguments: Any,
        model: str,
        weights: str | None,
        labels: Path | None,
        preprocessing: str | None,
        weights_sha256: str | None,
        **options: Any,
    ) -> Any:
        from resnet_service.models import ModelSource

        source = ModelSource(model, weights, labels, preprocessing, weights_sha256)
        return command(*arguments, model=source, **options)

    decorated: Any = with_source
    for option in (
        click.option(
            "--weights-sha256",
            metavar="HEX",
            help="SHA-256 of the file with the weights, or its first digits.",
        ),
        click.option(
            "--preprocessing",
            metavar="FILE|JSON",
            help="Fields that replace those of the model: resize, crop, mean, std, interpolation.",
        ),
        click.option(
            "--labels",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Labels of the classes: text with one a line, or JSON.",
        ),
        click.option(
            "--weights", help="Weights for a torchvision classifier or efficientnet_lite0, as for serve."
        ),
        click.option(
            "--model",
            default=DEFAULT_MODEL,
            envvar=MODEL_VARIABLE,
            show_envvar=True,
            help="A classifier of torchvision or timm/NAME, efficientnet_lite0, cifar10, a checkpoint or an "
            "ONNX file; auto is resnet50, or efficientnet_lite0 if its weights cannot be downloaded.",
        ),
    ):
        decorated = option(decorated)
    return cast(Command, decorated)


def execution_options(command: Command) -> Command:
    """Add --device, --precision and --runtime, each with one value."""
    for option in (
        click.option("--runtime", type=_choice("auto", *RUNTIMES), default="auto", help=RUNTIME_HELP),
        click.option("--precision", type=_choice("auto", *PRECISIONS), default="auto", help=PRECISION_HELP),
        click.option("--device", default="auto", help=DEVICE_HELP),
    ):
        command = option(command)
    return command


def _choice(*words: str) -> click.Choice:  # type: ignore[type-arg]  # as above
    return click.Choice(words, case_sensitive=False)


def batch_size_option(default: int) -> Callable[[Command], Command]:
    """Return a decorator that adds --batch-size."""
    return click.option(
        "--batch-size", type=click.IntRange(1), default=default, help="Maximum number of images in a batch."
    )


def workers_option(command: Command) -> Command:
    """Add --workers, the number of decoding threads; None means one per CPU core."""
    return click.option(
        "--workers",
        type=click.IntRange(1),
        show_default="one per CPU core",
        help="Number of threads that decode images.",
    )(command)


def json_option(help_text: str) -> Callable[[Command], Command]:
    """Return a decorator that adds --json."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


@contextmanager
def exit_on_service_error() -> Iterator[None]:
    """Turn a ServiceError into its message on standard error and exit status 1."""
    from resnet_service.errors import ServiceError

    try:
        yield
    except ServiceError as error:
        raise click.ClickException(str(error)) from error


def echo_error(message: str) -> None:
    """Print a message to standard error, unless it cannot be written."""
    with suppress(OSError):
        click.echo(message, err=True)


def report_skipped(unreadable: Mapping[Any, str]) -> None:
    """Print the number of files that could not be read as images, and some with the reason."""
    for path, reason in list(unreadable.items())[:_MAX_SKIPPED_SHOWN]:
        echo_error(f"skipped {click.format_filename(path)}: {reason}")
    if unreadable:
        files = "1 file" if len(unreadable) == 1 else f"{len(unreadable):,} files"
        echo_error(f"skipped {files} in total")


def load_chosen_model(model: "ModelSource") -> "Model":
    """Load the model of --model, and say what `auto` stands for. Raises ModelLoadError."""
    from resnet_service.models import load_model

    return load_model(resolve_auto(model))


def load_model_to_time(model: "ModelSource | str") -> "Model":
    """Load a model whose speed is measured; say so if its weights are random. Raises ModelLoadError."""
    from resnet_service.models import load_model_or_random

    source = resolve_auto(model)
    loaded, reason = load_model_or_random(source)
    if reason is not None:
        echo_error(f"{source.name} has random weights, which changes its results, not its speed: {reason}")
    return loaded


def resolve_auto(model: "ModelSource | str") -> "ModelSource":
    """Return the model to load; if it is the choice of `auto`, print its name with the reason."""
    from resnet_service.models import choose_model

    choice = choose_model(model)
    if choice.reason is not None:
        echo_error(f"model {choice.name}: {choice.reason}")
    return choice.source


@dataclass(frozen=True)
class LoadedModel:
    """A model and the runtime that executes it, one batch at a time."""

    model: "Model"
    runtime: "Runtime"

    def __str__(self) -> str:
        """Name the model, device, precision and runtime."""
        runtime = self.runtime
        return f"{self.model.name} on {runtime.device}, {runtime.precision}, {runtime.name}"


def load_on_device(
    model: "ModelSource",
    device: str,
    precision: "Precision | Literal['auto']",
    runtime: "RuntimeName",
) -> LoadedModel:
    """Load a model onto one device. Raises ServiceError if the model or the device is not available."""
    from resnet_service.devices import choose_device
    from resnet_service.runtimes.selection import check_options, create_runtimes

    target = choose_device(device)  # first: downloading weights takes longer
    check_options(target, runtime, precision)
    loaded = load_chosen_model(model)
    [executor] = create_runtimes(loaded, [target], name=runtime, precision=precision, streams_per_device=1)
    return LoadedModel(loaded, executor)
