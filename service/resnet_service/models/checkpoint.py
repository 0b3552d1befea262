"""Checkpoints: one safetensors file with the weights and everything that serving them requires.

The metadata in the file's header holds the network's name, the labels, the preprocessing and the facts of
the training run, so `serve --model FILE` needs no other file. Safetensors files contain no code, so untrusted
files are safe to open.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resnet_service.errors import ModelLoadError, first_line
from resnet_service.files import atomic_write
from resnet_service.images import Preprocessing

FORMAT: Final = "resnet-service/1"

_LABELS: Final = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=1)])
_PREPROCESSING: Final = TypeAdapter(Preprocessing)
_TRAINING: Final = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file.

    `network` is a key of `resnet_service.models.networks.NETWORKS` or the name of a classifier of the
    catalog. `state` is the network's state dict, or that of an `OpenVINOModel`. `training` is a JSON object
    that documents the training run (data, epochs, seed, accuracy, hardware); nothing depends on it.
    """

    network: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    state: Mapping[str, Tensor]
    training: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write `checkpoint` to `path` atomically. Raises OSError or SafetensorError."""
    metadata = {
        "format": FORMAT,
        "network": checkpoint.network,
        "labels": json.dumps(checkpoint.labels),
        "preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
        "training": json.dumps(checkpoint.training),
    }
    with atomic_write(path) as temporary:
        save_file({key: value.contiguous() for key, value in checkpoint.state.items()}, temporary, metadata)
        temporary.chmod(0o644)  # safetensors creates it as 0600, unreadable for the user of a service


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises ModelLoadError if the file is missing, damaged or not a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ModelLoadError(
                    f"{path} is not a checkpoint of this version (format {metadata.get('format')!r}, "
                    f"expected {FORMAT!r})"
                )
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Checkpoint(
            network=metadata["network"],
            labels=_LABELS.validate_json(metadata["labels"], strict=True),
            preprocessing=_PREPROCESSING.validate_json(metadata["preprocessing"], strict=True),
            state=state,
            training=_TRAINING.validate_json(metadata["training"], strict=True),
        )
    except FileNotFoundError as error:
        raise ModelLoadError(f"file not found: {path}") from error
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} is not a readable checkpoint: {first_line(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path} is not a readable checkpoint: its metadata is invalid") from error
