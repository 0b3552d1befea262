"""The command line: parses arguments and calls the package.

Commands import heavy libraries when they run, so that --help takes a fraction of a second.
"""

import click

from resnet_service import __version__
from resnet_service.cli.baseline import baseline
from resnet_service.cli.batch import batch
from resnet_service.cli.bench import bench
from resnet_service.cli.classify import classify
from resnet_service.cli.common import CommandGroups
from resnet_service.cli.compare import compare
from resnet_service.cli.convert import convert
from resnet_service.cli.evaluate import activations, evaluate
from resnet_service.cli.explain import explain
from resnet_service.cli.export import export
from resnet_service.cli.quantize import quantize
from resnet_service.cli.serve import serve, ui
from resnet_service.cli.tools import doctor, inspect
from resnet_service.cli.train import train

__all__ = ["main"]


@click.group(
    cls=CommandGroups,
    sections={
        "Serve and measure": (serve, bench, compare, baseline, ui),
        "Local inference": (classify, batch, explain, evaluate, activations),
        "Training": (train, quantize, convert, export),
        "Tools": (doctor, inspect),
    },
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="resnet-service")
def main() -> None:
    """Serve image classifiers, run them locally, measure them, and train them.

    Exit status: 0 success, 1 failed input or unavailable resource, 2 usage error.
    """
