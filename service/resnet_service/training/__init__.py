"""Training: labeled images in folders are turned into a checkpoint that can be served."""

from importlib.util import find_spec

from resnet_service.errors import MissingDependencyError


def require_plots() -> None:
    """Raise MissingDependencyError if matplotlib is not installed, which every `plots` module needs."""
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("plots need matplotlib: make install EXTRAS=train")
