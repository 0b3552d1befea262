"""Options that several commands have, and the service that a command tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from load_tests.service import run_service, serve_command

model_option = click.option(
    "--model", default="cifar10", show_default=True, help="Model that the service serves."
)
weights_option = click.option("--weights", help="Weights for a torchvision classifier, as for serve.")
workers_option = click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True, help="HTTP workers of the service."
)
host_option = click.option("--host", help="Test a running service, for example http://localhost:8000.")
images_option = click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of JPEG files to send; generated images by default.",
)
image_option = click.option(
    "--image",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="JPEG file that each request carries.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("load-test-results"),
    show_default=True,
    help="Folder for reports and logs.",
)


@contextmanager
def service_under_test(
    output: Path, model: str, weights: str | None = None, *flags: str, log: str = "service.log"
) -> Iterator[tuple[str, int]]:
    """Start a service with these flags and yield its URL and process id; its log goes into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    with run_service(serve_command(model, weights, *flags), output / log) as (url, process):
        yield url, process.pid


@contextmanager
def service_or_host(host: str | None, output: Path, model: str, weights: str | None) -> Iterator[str]:
    """Yield the URL of the running service `host`, or of a service that is started if it is None."""
    if host is not None:
        output.mkdir(parents=True, exist_ok=True)
        yield host.rstrip("/")
        return
    with service_under_test(output, model, weights) as (url, _):
        yield url
