"""Training: images in folders in, a checkpoint that can be served out."""

from importlib.util import find_spec

from resnet_service.errors import MissingDependencyError


def require_plots() -> None:
    """Raise MissingDependencyError where matplotlib is not installed, which `resnet_service.training.plots` needs."""
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("plots need matplotlib: pip install 'resnet-service[train]'")
