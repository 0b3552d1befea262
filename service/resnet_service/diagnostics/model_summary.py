"""What a model is made of: parameters, layers, sizes and the work that one image takes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_service.images import Preprocessing
from resnet_service.models import Model, catalog, load_model, weights_path

_BYTES_PER_PARAMETER: Final = 4  # as it is held before a runtime converts it: fp32


@dataclass(frozen=True)
class ModelSummary:
    """A model's facts. A quantized one is a graph, which has neither parameters nor layers to count.

    `layers` counts the modules that hold no others, by type. `operations` are the floating-point operations
    for one image, a multiplication and an addition being two. `file_bytes` is the size of its weights'
    file, None for published weights that have not been downloaded.
    """

    name: str
    source: str
    parameters: int | None
    buffers: int | None
    layers: Mapping[str, int] | None
    operations: int | None
    file_bytes: int | None
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def memory_bytes(self) -> int | None:
        """The parameters' size in fp32."""
        return None if self.parameters is None else self.parameters * _BYTES_PER_PARAMETER


def summarize_model(name: str, weights_source: str | None = None) -> ModelSummary:
    """Look at the model called `name`, as for `load_model`; published weights are not downloaded for it.

    Raises ModelLoadError.
    """
    if name in catalog.model_names() and (
        weights_source is None or weights_source in catalog.published_weights(name)
    ):
        entry = catalog.get_spec(name, weights_source)
        model = Model(name, entry.build().eval(), entry.labels, entry.preprocessing, entry.url)
    else:
        model = load_model(name, weights_source)
    network = model.program if isinstance(model.program, nn.Module) else None
    return ModelSummary(
        name=model.name,
        source=model.source,
        parameters=None if network is None else sum(value.numel() for value in network.parameters()),
        buffers=None if network is None else sum(value.numel() for value in network.buffers()),
        layers=None if network is None else _layers(network),
        operations=None if network is None else _operations(network, model.preprocessing.crop),
        file_bytes=_file_bytes(weights_path(name, weights_source)),
        labels=model.labels,
        preprocessing=model.preprocessing,
    )


def _layers(network: nn.Module) -> Mapping[str, int]:
    leaves = (module for module in network.modules() if not any(module.children()))
    return dict(Counter(type(module).__name__ for module in leaves).most_common())


@torch.inference_mode()
def _operations(network: nn.Module, side: int) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        network(torch.zeros(1, 3, side, side))
    return counter.get_total_flops()


def _file_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
