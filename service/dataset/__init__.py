"""Classify a whole data set with Ray Data: pictures from a folder or an object store, answers as Parquet.

Needs the extra `ray`: ask `require` before importing the modules.
"""

from importlib.util import find_spec

from service.errors import ExtraMissing


def require() -> None:
    """Raise ExtraMissing where Ray or PyArrow is not installed."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise ExtraMissing("a data set needs Ray and PyArrow: pip install 'resnet-service[ray]'")
