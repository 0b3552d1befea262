"""State dicts from files and URLs, opened without running any code in them.

Downloads go into torch's usual cache, once, with a progress bar. A file whose name carries a hash the way
torch's do (`resnet50-11ad3fa6.pth`) is checked against it.
"""

import hashlib
import pickle
import re
import socket
import struct
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from service.errors import ModelUnavailable

_HASH_IN_NAME: Final = re.compile(r"-([a-f0-9]{8,64})\.[^.]+$")
_CONNECTION_TIMEOUT_S: Final = 30.0

# What torch's restricted unpickler and its archive reader raise on bytes that are something else.
_BROKEN: Final = (
    SafetensorError,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
)

DOWNLOAD_ERRORS: Final = (urllib.error.URLError, HTTPException, OSError)
"""What urllib raises where a file cannot be fetched; torch raises RuntimeError for a wrong hash."""


def cache_folder() -> Path:
    """Return the folder where torch and torchvision keep downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def is_url(source: str) -> bool:
    """Say whether `source` is an http(s) URL rather than a path."""
    return urlsplit(source).scheme in ("http", "https")


def read_state(source: str) -> Mapping[str, Tensor]:
    """Read a state dict from a path or an http(s) URL: safetensors, or a pickle of tensors only.

    Raises ModelUnavailable, naming the cause, where it cannot be had, has a wrong hash or is something else.
    """
    path = download(source) if is_url(source) else Path(source).expanduser()
    try:
        _check_hash(path)
        return _state_in(_open(path))
    except ModelUnavailable:
        if is_url(source):
            path.unlink(missing_ok=True)  # so that the next start fetches it anew
        raise


def download(url: str) -> Path:
    """Return the cached file for `url`, fetching it first where it is not there yet."""
    name = Path(urlsplit(url).path).name or "weights"
    hash_in_name = _HASH_IN_NAME.search(name)
    folder = cache_folder()
    if not hash_in_name:
        # Without a hash, two servers' files of one name are two files.
        folder /= hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / name
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with connection_timeout():
            torch.hub.download_url_to_file(
                url, str(path), hash_in_name and hash_in_name.group(1), progress=True
            )
    except (*DOWNLOAD_ERRORS, RuntimeError) as error:
        raise ModelUnavailable(f"{url} could not be downloaded: {error}") from error
    return path


@contextmanager
def connection_timeout() -> Iterator[None]:
    """Bound the silence of a server while torch downloads: its own code waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECTION_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_hash(path: Path) -> None:
    expected = _HASH_IN_NAME.search(path.name)
    if expected is None:
        return
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error
    if not actual.startswith(expected.group(1)):
        raise ModelUnavailable(f"{path} is damaged: its SHA-256 starts {actual[:8]}, not {expected.group(1)}")


def _open(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelUnavailable(f"there is no file {path}") from error
    except pickle.UnpicklingError as error:
        raise ModelUnavailable(
            f"{path} is damaged or holds more than tensors, and pickled code is never run; "
            "save network.state_dict(), or use safetensors"
        ) from error
    except _BROKEN as error:
        raise ModelUnavailable(f"{path} is no readable weights file: {error}") from error


def _state_in(content: Any) -> Mapping[str, Tensor]:
    """Find the state dict in what trainers save: bare, or under "state_dict" or "model"."""
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
        if content and all(isinstance(value, Tensor) for value in content.values()):
            state: dict[str, Tensor] = dict(content)
            consume_prefix_in_state_dict_if_present(state, "module.")  # from DistributedDataParallel
            return state
    raise ModelUnavailable("the weights file holds no state dict (a mapping from names to tensors)")
