"""Training: pictures in folders in, a checkpoint that can be served out."""

from importlib.util import find_spec

from service.errors import ExtraMissing


def require_plots() -> None:
    """Raise ExtraMissing where matplotlib is not installed, which `service.training.plots` needs."""
    if find_spec("matplotlib") is None:
        raise ExtraMissing("plots need matplotlib: pip install 'resnet-service[train]'")
