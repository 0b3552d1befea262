"""Read state dicts from files and URLs without running code that they may contain.

A URL is downloaded once, with a progress bar, to PyTorch's cache directory. If a file name contains a hash in
PyTorch's style (`resnet50-11ad3fa6.pth`), the file is checked against it.
"""

import hashlib
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from resnet_service.errors import ModelLoadError
from resnet_service.models.download import DOWNLOAD_ERRORS, check_reachable, download

_CONNECT_TIMEOUT_S: Final = 5.0

# PyTorch's style is net-11ad3fa6.pth. Eight digits that form a date are not a hash.
_HASH_IN_NAME: Final = re.compile(r"-(?!20\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\.)([a-f0-9]{8,64})\.[^.]+$")

LOAD_ERRORS: Final = (
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
"""What torch.load(weights_only=True) and safetensors raise for files of another format, except
pickle.UnpicklingError, which can also mean that the file contains code."""


def torch_cache_dir() -> Path:
    """Return the directory in which torch and torchvision cache downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def is_url(source: str) -> bool:
    """Return whether `source` is an http(s) URL; otherwise it is a path."""
    return source.lower().startswith(("http://", "https://"))


def load_state_dict(source: str) -> Mapping[str, Tensor]:
    """Read a state dict from a path or an http(s) URL: safetensors, or a pickle that contains only tensors.

    Raises ModelLoadError if the file cannot be read or downloaded, its hash differs or its format is another.
    """
    if not is_url(source):
        return _read(Path(source))
    path, is_new = _download(source)
    try:
        return _read(path)
    except ModelLoadError:
        if is_new:
            path.unlink()  # so that the next start downloads it again
        raise


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        _check_hash(path, path.name)
        return _find_state_dict(_open(path))
    except FileNotFoundError as error:
        raise ModelLoadError(f"file not found: {path}") from error
    except pickle.UnpicklingError as error:
        raise ModelLoadError(
            f"{path} is damaged or contains more than tensors; pickled code is never run. "
            "Save network.state_dict(), or use safetensors"
        ) from error
    except LOAD_ERRORS as error:
        raise ModelLoadError(f"{path} is not a readable weights file: {error}") from error


def cache_path(url: str) -> Path:
    """Return the path in the cache for the file at `url`; the file may not exist yet."""
    name = Path(urlsplit(url).path).name or "weights"
    # Without a hash, files with the same name on two servers are different files.
    folder = "" if _HASH_IN_NAME.search(name) else hashlib.sha256(url.encode()).hexdigest()[:16]
    return torch_cache_dir() / folder / name


def fetch_published(url: str) -> bool:
    """Download published weights unless they are cached; return whether they were downloaded now.

    Raises ModelLoadError if their server does not respond within 5 s, or the download fails.
    """
    if cache_path(url).exists():
        return False
    try:
        check_reachable(url, _CONNECT_TIMEOUT_S)
    except DOWNLOAD_ERRORS as error:
        raise ModelLoadError(str(error)) from error
    return _download(url)[1]


def _download(url: str) -> tuple[Path, bool]:
    """Download `url` unless it is cached; return its path and whether it was downloaded now."""
    try:
        path = cache_path(url)
        if path.exists():
            return path, False
        download(url, path, check=lambda temporary: _check_hash(temporary, path.name))
    except (*DOWNLOAD_ERRORS, ModelLoadError) as error:
        raise ModelLoadError(f"{url} could not be downloaded: {error}") from error
    return path, True


def _check_hash(path: Path, name: str) -> None:
    """Raise ModelLoadError if `name` contains a hash and that of the file at `path` differs."""
    expected = _HASH_IN_NAME.search(name)
    if expected is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected.group(1)):
        digits = f"{actual[:8]}, not {expected.group(1)}"
        raise ModelLoadError(f"{path.with_name(name)} is damaged: its SHA-256 starts with {digits}")


def _open(path: Path) -> object:
    with path.open("rb") as file:
        # A safetensors file is the length of its header (8 bytes) followed by JSON; its suffix may be any.
        is_safetensors = file.read(9)[8:] == b"{"
    return load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)


def _find_state_dict(content: Any) -> Mapping[str, Tensor]:
    """Return the state dict in a trainer's file: the top level, or the entry "state_dict" or "model"."""
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
        if content and all(isinstance(value, Tensor) for value in content.values()):
            state: dict[str, Tensor] = dict(content)
            consume_prefix_in_state_dict_if_present(state, "module.")  # from DistributedDataParallel
            return state
    raise ModelLoadError("the weights file does not contain a state dict (a mapping from names to tensors)")
