"""The cache of networks that were converted for OpenVINO, for later starts."""

import hashlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Final

import openvino as ov
import torch
from torch import nn

from resnet_service.files import app_cache_dir
from resnet_service.images import Preprocessing

_IR_VERSION: Final = 3
"""Of the converted networks: since 3, they have the embeddings as an output of fp32."""


def cached_topology(network: nn.Module, preprocessing: Preprocessing) -> Path:
    """Return the path of the XML file of a converted network; it may not exist yet."""
    return app_cache_dir() / "openvino" / _fingerprint(network, preprocessing) / "model.xml"


def write_to_cache(model: ov.Model, topology: Path) -> None:
    """Write a converted network, unless another process has done so. Raises OSError."""
    folder = topology.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        complete = Path(temporary) / "complete"
        complete.mkdir()
        ov.save_model(model, complete / topology.name, compress_to_fp16=False)
        try:
            complete.replace(folder)  # atomic: a killed process leaves no partial entry
        except OSError:
            if not topology.exists():  # otherwise another process has written the same entry
                raise


def _fingerprint(network: nn.Module, preprocessing: Preprocessing) -> str:
    """Return a key for the cache: a hash of the network, its weights, the preprocessing and the versions."""
    digest = hashlib.sha256()
    versions = [_IR_VERSION, ov.__version__, torch.__version__]
    digest.update(json.dumps([versions, str(network), asdict(preprocessing)]).encode())
    for key, tensor in network.state_dict().items():
        digest.update(f"{key}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
