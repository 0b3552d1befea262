"""The command line: parses and calls. Heavy imports stay inside, so that --help answers at once."""

import click

from service import __version__
from service.cli.quantize import quantize
from service.cli.serve import serve
from service.cli.train import activations, evaluate, train


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    commands=[serve, train, evaluate, quantize, activations],
)
@click.version_option(__version__, prog_name="resnet-service")
def main() -> None:
    """Serve image classifiers, and train, examine and quantise one's own."""
