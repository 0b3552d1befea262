"""Models: a network with its weights, labels and preprocessing, and the sources that they are loaded from.

Runs on the CPU only; `resnet_service.runtimes` places a model on a device.
"""

from resnet_service.models.conversion import convert_to_checkpoint
from resnet_service.models.default import AUTO, ModelChoice, choose_model
from resnet_service.models.model import Model, ModelDescription, ModelVersion, ONNXModel, OpenVINOModel
from resnet_service.models.random_weights import load_model_or_random
from resnet_service.models.registry import CIFAR10, load_model, load_weights, weights_path
from resnet_service.models.source import ModelSource

__all__ = [
    "AUTO",
    "CIFAR10",
    "Model",
    "ModelChoice",
    "ModelDescription",
    "ModelSource",
    "ModelVersion",
    "ONNXModel",
    "OpenVINOModel",
    "choose_model",
    "convert_to_checkpoint",
    "load_model",
    "load_model_or_random",
    "load_weights",
    "weights_path",
]
