"""Random weights, for measurements of speed where the published weights of a classifier cannot be had."""

from typing import Final

import torch
from torch import nn

from resnet_service.errors import ModelLoadError
from resnet_service.models import weights
from resnet_service.models.model import Model
from resnet_service.models.registry import load_model
from resnet_service.models.source import ModelSource

RANDOM_WEIGHTS: Final = "random weights"
"""The source of a model with random weights."""

_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)


def load_model_or_random(source: ModelSource | str) -> tuple[Model, str | None]:
    """Load a model; if it needs published weights that cannot be downloaded, use random ones.

    Returns the model and the reason for random weights, None if it has its own. Neither the duration nor the
    memory of a batch depends on the weights; its results do. Takes the argument of `load_model`, and raises
    ModelLoadError as it does.
    """
    source = ModelSource(source) if isinstance(source, str) else source
    if source.is_published:
        spec = source.published_spec()
        try:
            weights.fetch_published(spec)
        except ModelLoadError as error:
            network = _randomize(spec.build(), spec.preprocessing.crop)
            model = Model(spec.name, network, spec.labels, spec.preprocessing, RANDOM_WEIGHTS)
            return model, f"its weights cannot be downloaded: {error}"
    return load_model(source), None


@torch.no_grad()
def _randomize(network: nn.Module, size: int) -> nn.Module:
    """Set the statistics of batch normalization to those of noise, as training would.

    With the initial ones, the values of a ResNet-152 grow from block to block up to 1e8, too large for fp16.
    """
    norms = [module for module in network.modules() if isinstance(module, _BATCH_NORMS)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        network.train()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return network.eval()
