"""A log of predictions: a sample of the images that requests have classified, in Parquet files.

Needs the extra `parquet`: call `require_parquet` before importing the modules.

`log` chooses the predictions and has the thread that writes, `rows` the columns of the files, `folder` their
names and how long they are kept, and `reader` reads images whose class was added.
"""

from importlib.util import find_spec
from pathlib import Path

from resnet_service.errors import MissingDependencyError


def require_parquet() -> None:
    """Raise MissingDependencyError if a package of the extra is not installed."""
    if find_spec("pyarrow") is None or find_spec("fsspec") is None:
        raise MissingDependencyError("the prediction log needs PyArrow: make install EXTRAS=parquet")


def is_prediction_log(source: str) -> bool:
    """Return whether a name is a URI, or that of a folder with Parquet files and without subfolders."""
    if "://" in source:
        return True
    try:
        entries = [entry for entry in Path(source).iterdir() if not entry.name.startswith(".")]
        return any(entry.suffix == ".parquet" for entry in entries) and not any(map(Path.is_dir, entries))
    except OSError:  # the reader of folders describes it
        return False
