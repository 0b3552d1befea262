"""How a command says that it cannot do what it was asked."""

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def exit_on_service_error() -> Iterator[None]:
    """Turn the service's errors into one message and exit status 1."""
    from resnet_service.errors import ServiceError

    try:
        yield
    except ServiceError as error:
        raise click.ClickException(str(error)) from error
