"""The project's own checkpoint: one safetensors file that says how it is to be used.

The header's metadata holds the network's name, the labels, the preprocessing and where the weights come
from, so `serve --model FILE` needs nothing else. Safetensors hold no code: a stranger's file is safe to open.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from service.errors import ModelUnavailable
from service.images import Preprocessing

FORMAT: Final = "resnet-service/1"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network's weights with all that serving it needs.

    `network` is a key of `service.models.networks.NETWORKS` or a torchvision classifier's name; `training`
    is a JSON object of facts for people (data, epochs, seed, accuracy, hardware).
    """

    network: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    state: Mapping[str, Tensor]
    training: Mapping[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint whole or not at all: to a temporary name beside `path`, then renamed."""
    metadata = {
        "format": FORMAT,
        "network": checkpoint.network,
        "labels": json.dumps(checkpoint.labels),
        "preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
        "training": json.dumps(checkpoint.training),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({key: value.contiguous() for key, value in checkpoint.state.items()}, temporary, metadata)
        temporary.chmod(0o644)  # safetensors makes it 0600, which a service's own user cannot read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_checkpoint(path: Path) -> bool:
    """Say whether `path` is a safetensors file of this project; a bare state dict is not."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool((file.metadata() or {}).get("format", "").startswith("resnet-service/"))
    except (SafetensorError, OSError):
        return False


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; raises ModelUnavailable where the file is missing, broken or not one of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ModelUnavailable(
                    f"{path} is no checkpoint of this version (format {metadata.get('format')!r}, "
                    f"expected {FORMAT!r})"
                )
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        preprocessing = json.loads(metadata["preprocessing"])
        preprocessing["mean"], preprocessing["std"] = (
            tuple(preprocessing["mean"]),
            tuple(preprocessing["std"]),
        )
        return Checkpoint(
            network=metadata["network"],
            labels=tuple(json.loads(metadata["labels"])),
            preprocessing=Preprocessing(**preprocessing),
            state=state,
            training=json.loads(metadata["training"]),
        )
    except FileNotFoundError as error:
        raise ModelUnavailable(f"there is no file {path}") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(f"{path} is not a readable checkpoint: {error!r}") from error
