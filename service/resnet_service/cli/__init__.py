"""The command line: parses and calls. Heavy imports stay inside, so that --help answers at once."""

import click

from resnet_service import __version__
from resnet_service.cli.batch import batch
from resnet_service.cli.bench import bench
from resnet_service.cli.classify import classify
from resnet_service.cli.compare import compare
from resnet_service.cli.doctor import doctor
from resnet_service.cli.inspect import inspect
from resnet_service.cli.quantize import quantize
from resnet_service.cli.serve import serve
from resnet_service.cli.train import activations, evaluate, train
from resnet_service.cli.ui import ui


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
