"""Classify a whole data set with Ray Data: images from a folder or an object store, answers as Parquet.

Needs the extra `ray`: ask `require` before importing the modules.
"""

from importlib.util import find_spec

from resnet_service.errors import MissingDependencyError


def require_ray() -> None:
    """Raise MissingDependencyError where Ray or PyArrow is not installed."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise MissingDependencyError("a data set needs Ray and PyArrow: pip install 'resnet-service[ray]'")
