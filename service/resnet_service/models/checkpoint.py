"""The project's own checkpoint: one safetensors file that says how it is to be used.

The header's metadata holds the network's name, the labels, the preprocessing and where the weights come
from, so `serve --model FILE` needs nothing else. Safetensors hold no code: a stranger's file is safe to open.
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

from resnet_service.errors import ModelLoadError
from resnet_service.files import atomic_write
from resnet_service.images import Preprocessing

FORMAT: Final = "resnet-service/1"

_LABELS: Final = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=1)])
_PREPROCESSING: Final = TypeAdapter(Preprocessing)
_TRAINING: Final = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Checkpoint:
    """A trained network's weights with all that serving it needs.

    `network` is a key of `resnet_service.models.networks.NETWORKS` or a torchvision classifier's name; `training`
    is a JSON object of facts for people (data, epochs, seed, accuracy, hardware).
    """

    network: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    state: Mapping[str, Tensor]
    training: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint, whole or not at all; raises OSError or SafetensorError."""
    metadata = {
        "format": FORMAT,
        "network": checkpoint.network,
        "labels": json.dumps(checkpoint.labels),
        "preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
        "training": json.dumps(checkpoint.training),
    }
    with atomic_write(path) as temporary:
        save_file({key: value.contiguous() for key, value in checkpoint.state.items()}, temporary, metadata)
        temporary.chmod(0o644)  # safetensors makes it 0600, which a service's own user cannot read


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; raises ModelLoadError where the file is missing, broken or not one of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ModelLoadError(
                    f"{path} is no checkpoint of this version (format {metadata.get('format')!r}, "
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
        raise ModelLoadError(f"there is no file {path}") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path} is not a readable checkpoint: {error!r}") from error
