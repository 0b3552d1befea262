"""Classify a data set with Ray Data: images from a folder or an object store, results as Parquet files.

Needs the extra `ray`: call `require_ray` before importing the modules.
"""

from importlib.util import find_spec

from resnet_service.errors import MissingDependencyError


def require_ray() -> None:
    """Raise MissingDependencyError if Ray or PyArrow is not installed."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise MissingDependencyError("batch inference needs Ray and PyArrow: make install EXTRAS=ray")
