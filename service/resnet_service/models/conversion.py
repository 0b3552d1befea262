"""Turn a model, from whatever files, into one checkpoint that needs no other file."""

from collections.abc import Mapping
from typing import Any

from resnet_service.models import catalog
from resnet_service.models.checkpoint import Checkpoint, load_checkpoint
from resnet_service.models.registry import load_model, weights_path
from resnet_service.models.source import ModelSource


def convert_to_checkpoint(source: ModelSource) -> Checkpoint:
    """Load a model and return a checkpoint with its weights in fp32, its labels and its preprocessing.

    Its facts of the training run are those of the checkpoint that `source` names, if it names one, and the
    file that the weights come from. Raises ModelLoadError as `load_model` does.
    """
    model = load_model(source)
    network = source.name
    training: Mapping[str, Any] = {}
    if not catalog.is_classifier(source.name):
        original = load_checkpoint(weights_path(source))
        network, training = original.network, original.training
    program = model.network if model.openvino_model is None else model.openvino_model
    facts = {**training, "converted_from": model.source}
    return Checkpoint(network, model.labels, model.preprocessing, program.state_dict(), facts)
