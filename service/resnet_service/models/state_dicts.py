"""Read the state dict in a file of PyTorch or safetensors, without running code that the file may contain.

Trainers store it in different ways: within a larger dictionary, below the prefix of a wrapper of the network,
or beside other objects.
"""

import argparse
import pickle
import re
import struct
import types
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from resnet_service.errors import ModelLoadError, first_line
from resnet_service.models.file_formats import describe_foreign_file

ENTRIES: Final = ("state_dict", "model_state_dict", "model", "net", "weights", "ema", "module")
"""Where trainers store a state dict in a dictionary; the first one that exists is used."""
PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.")
"""What DistributedDataParallel, torch.compile, Lightning and others put before each key."""

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

# Objects beside the tensors that have no effect when they are created: options and figures of a training run.
# Files of NumPy 1 and of other versions of Python have other names for the same objects.
_SAFE_GLOBALS: Final[list[Any]] = [
    argparse.Namespace,
    types.SimpleNamespace,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"},
    *(
        (value.__reduce__()[0], f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, value in (("scalar", np.float64(0)), ("_reconstruct", np.zeros(1)))
    ),
    *(
        (PurePath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
]
_SAFE_GLOBALS_LOCK: Final = Lock()
"""torch has one list of safe globals for all threads."""

_GLOBAL_IN_MESSAGE: Final = re.compile(r"GLOBAL ([\w.]+)")
_MAX_DEPTH: Final = 3
_MAX_SHOWN: Final = 5


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Read the state dict in a file: safetensors, or a pickle of PyTorch that contains only data.

    It is the whole content or an entry of ENTRIES, also one within another. PREFIXES are removed if all keys
    have them. Raises ModelLoadError, which says what the file holds, and FileNotFoundError.
    """
    try:
        if description := describe_foreign_file(path):
            raise ModelLoadError(f"{path} is {description}")
        content = _open(path)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelLoadError(f"{path} {_describe_code(path, error)}") from error
    except LOAD_ERRORS as error:
        raise ModelLoadError(f"{path} is not a readable weights file: {first_line(error)}") from error
    state = _find_state_dict(content)
    if state is None:
        raise ModelLoadError(
            f"{path} does not contain a state dict (a mapping from names to tensors), but "
            f"{_describe(content)}; save one with torch.save(network.state_dict(), FILE)"
        )
    return _strip_prefixes(state)


def _open(path: Path) -> object:
    with path.open("rb") as file:
        # A safetensors file is the length of its header (8 bytes) followed by JSON; its suffix may be any.
        is_safetensors = file.read(9)[8:] == b"{"
    if is_safetensors:
        return load_file(path)
    with _SAFE_GLOBALS_LOCK, torch.serialization.safe_globals(_SAFE_GLOBALS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _find_state_dict(content: object, depth: int = 0) -> dict[str, Tensor] | None:
    if not isinstance(content, dict) or not content or depth > _MAX_DEPTH:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        # The counter of torch.optim.swa_utils.AveragedModel is not a tensor of the network.
        return {key: value for key, value in content.items() if key != "n_averaged"}
    found = (_find_state_dict(content.get(entry), depth + 1) for entry in ENTRIES)
    return next((state for state in found if state is not None), None)


def _strip_prefixes(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the prefixes that all keys have, in whatever order the wrappers were applied."""
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _describe(content: object) -> str:
    """Describe what a file holds in a few words."""
    if isinstance(content, Tensor):
        return f"one tensor of the shape {list(content.shape)}"
    if isinstance(content, dict):
        entries = [f"{key!r} ({_describe_entry(value)})" for key, value in content.items()]
        return f"a dictionary with {_enumerate(entries)}" if entries else "an empty dictionary"
    return f"an object of the type {type(content).__name__}"


def _describe_entry(value: object) -> str:
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, dict | list | tuple) else kind


def _describe_code(path: Path, error: pickle.UnpicklingError) -> str:
    classes = sorted(_unknown_classes(path, error), key=lambda name: (name.startswith("torch."), name))
    advice = (
        "code in a weights file is never run; where it was written, save the tensors alone: "
        "torch.save(network.state_dict(), FILE)"
    )
    if not classes:
        return f"is damaged or contains more than tensors ({first_line(error)}); {advice}"
    if any(name.startswith("torch.nn.modules.") for name in classes):
        return f"contains a whole network, with the classes {_enumerate(classes)}; {advice}"
    return f"contains more than tensors: objects of {_enumerate(classes)}; {advice}"


def _unknown_classes(path: Path, error: pickle.UnpicklingError) -> Iterator[str]:
    """Yield the names of the classes and functions in a pickle that are not loaded, without loading them."""
    try:
        with _SAFE_GLOBALS_LOCK, torch.serialization.safe_globals(_SAFE_GLOBALS):
            yield from torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*LOAD_ERRORS, pickle.UnpicklingError):  # not in the format of torch since 1.6: only the first one
        yield from _GLOBAL_IN_MESSAGE.findall(str(error))[:1]


def _enumerate(words: list[str]) -> str:
    more = f" and {len(words) - _MAX_SHOWN} more" if len(words) > _MAX_SHOWN else ""
    return ", ".join(word[:100] for word in words[:_MAX_SHOWN]) + more
