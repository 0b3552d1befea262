"""Outputs of commands: their options, which are checked before any work, and the error of a failed write."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from resnet_service.errors import first_line
from resnet_service.files import check_writable_directory, check_writable_file

Command = TypeVar("Command", bound=Callable[..., Any])


def output_option(
    help_text: str, *flags: str, directory: bool = False, required: bool = True
) -> Callable[[Command], Command]:
    """Return a decorator that adds --output (-o), or `flags`: the path of a file or a directory.

    A path that cannot be written ends the command while its options are parsed.
    """
    return click.option(
        *(flags or ("--output", "-o")),
        type=click.Path(file_okay=not directory, dir_okay=directory, path_type=Path),
        required=required,
        metavar="DIRECTORY" if directory else "FILE",
        callback=_check_directory if directory else _check_file,
        help=help_text,
    )


def check_local_directory(_context: click.Context, _parameter: click.Parameter, target: str) -> str:
    """Check an output that is a directory or a URI; an object store is checked when it is used."""
    if "://" not in target:
        _check_directory(_context, _parameter, Path(target))
    return target


@contextmanager
def exit_on_write_error(path: Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Turn an error of one of the types `errors` into a message with the path and exit status 1."""
    try:
        yield
    except errors as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise click.ClickException(f"{click.format_filename(path)} cannot be written: {reason}") from error


def _check_file(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    with exit_on_write_error(path):
        parent = path.absolute().parent
        if not parent.is_dir():
            raise click.UsageError(f"the directory {click.format_filename(parent)} does not exist")
        if path.is_dir():
            raise click.UsageError(f"{click.format_filename(path)} is a directory")
        check_writable_file(path)
    return path


def _check_directory(_context: click.Context, _parameter: click.Parameter, path: Path) -> Path:
    with exit_on_write_error(path):
        check_writable_directory(path)
    return path
