"""State dicts from files and URLs, opened without running any code in them.

Downloads go into torch's usual cache, once, with a progress bar. A file whose name carries a hash the way
torch's do (`resnet50-11ad3fa6.pth`) is checked against it.
"""

import hashlib
import pickle
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from resnet_service.errors import ModelLoadError

# As torch names its files: net-11ad3fa6.pth. Eight digits that are a date are a date.
_HASH_IN_NAME: Final = re.compile(r"-(?!20\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\.)([a-f0-9]{8,64})\.[^.]+$")
_TIMEOUT_S: Final = 30.0

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
"""What torch's restricted unpickler and its archive reader raise on bytes that are something else, beside
pickle.UnpicklingError, which may also mean code in the file."""


def torch_cache_dir() -> Path:
    """Return the folder where torch and torchvision keep downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def is_url(source: str) -> bool:
    """Say whether `source` is an http(s) URL rather than a path."""
    return source.lower().startswith(("http://", "https://"))


def load_state_dict(source: str) -> Mapping[str, Tensor]:
    """Read a state dict from a path or an http(s) URL: safetensors, or a pickle of tensors only.

    Raises ModelLoadError, naming the cause, where it cannot be had, has a wrong hash or is something else.
    """
    if not is_url(source):
        return _read(Path(source))
    path, fetched = download(source)
    try:
        return _read(path)
    except ModelLoadError:
        if fetched:
            path.unlink()  # so that the next start fetches it anew
        raise


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        _check_hash(path)
        return _find_state_dict(_open(path))
    except FileNotFoundError as error:
        raise ModelLoadError(f"there is no file {path}") from error
    except pickle.UnpicklingError as error:
        raise ModelLoadError(
            f"{path} is damaged or holds more than tensors, and pickled code is never run; "
            "save network.state_dict(), or use safetensors"
        ) from error
    except LOAD_ERRORS as error:
        raise ModelLoadError(f"{path} is no readable weights file: {error}") from error


def cache_path(url: str) -> Path:
    """Return where the file for `url` is kept, whether it is there or not."""
    name = Path(urlsplit(url).path).name or "weights"
    # Without a hash, two servers' files of one name are two files.
    folder = "" if _HASH_IN_NAME.search(name) else hashlib.sha256(url.encode()).hexdigest()[:16]
    return torch_cache_dir() / folder / name


def download(url: str) -> tuple[Path, bool]:
    """Return the cached file for `url`, fetched first where it is not there yet, and whether it was."""
    try:
        path = cache_path(url)
        hash_in_name = _HASH_IN_NAME.search(path.name)
        if path.exists():
            return path, False
        path.parent.mkdir(parents=True, exist_ok=True)
        with connection_timeout():
            torch.hub.download_url_to_file(
                url, str(path), hash_in_name and hash_in_name.group(1), progress=True
            )
    # urllib's own errors are OSErrors; torch raises RuntimeError for a wrong hash.
    except (OSError, HTTPException, ValueError, RuntimeError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the response too, with its connection
        raise ModelLoadError(f"{url} could not be downloaded: {error}") from error
    return path, True


@contextmanager
def connection_timeout() -> Iterator[None]:
    """Bound the silence of a server while torch or torchvision downloads: their own code waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_hash(path: Path) -> None:
    expected = _HASH_IN_NAME.search(path.name)
    if expected is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected.group(1)):
        raise ModelLoadError(f"{path} is damaged: its SHA-256 starts {actual[:8]}, not {expected.group(1)}")


def _open(path: Path) -> object:
    with path.open("rb") as file:
        # After the length of its header, eight bytes, a safetensors file has JSON; its name may say nothing.
        is_safetensors = file.read(9)[8:] == b"{"
    return load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)


def _find_state_dict(content: Any) -> Mapping[str, Tensor]:
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
    raise ModelLoadError("the weights file holds no state dict (a mapping from names to tensors)")
