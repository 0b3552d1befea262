"""Explanations: which places of an image speak for a class, by Grad-CAM.

Needs captum, an extra of the package: call `require_captum` first. Does not depend on HTTP.
"""

from importlib.util import find_spec

from resnet_service.errors import MissingDependencyError
from resnet_service.explanations.classes import find_class
from resnet_service.explanations.explainer import Explainer, Explanation

__all__ = ["Explainer", "Explanation", "find_class", "has_captum", "require_captum"]


def has_captum() -> bool:
    """Return whether captum is installed."""
    return find_spec("captum") is not None


def require_captum() -> None:
    """Raise MissingDependencyError if captum is not installed."""
    if not has_captum():
        raise MissingDependencyError("explanations need captum: make install EXTRAS=explain")
