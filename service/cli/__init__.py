"""The command line: parses and calls. Heavy imports stay inside, so that --help answers at once."""

import click

from service import __version__
from service.cli.batch import batch
from service.cli.bench import bench
from service.cli.classify import classify
from service.cli.compare import compare
from service.cli.doctor import doctor
from service.cli.inspect import inspect
from service.cli.quantize import quantize
from service.cli.serve import serve
from service.cli.train import activations, evaluate, train
from service.cli.ui import ui


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    commands=[
        *(serve, ui, classify, batch),
        *(doctor, inspect, bench, compare),
        *(train, evaluate, quantize, activations),
    ],
)
@click.version_option(__version__, prog_name="resnet-service")
def main() -> None:
    """Serve image classifiers, use them from here, measure them, and train one's own."""
