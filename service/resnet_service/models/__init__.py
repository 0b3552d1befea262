"""Models: a network with its weights, labels and preprocessing, and the sources that they are loaded from.

Runs on the CPU only; `resnet_service.runtimes` places a model on a device.
"""

from resnet_service.models.model import Model, ModelDescription, OpenVINOModel
from resnet_service.models.registry import BUNDLED, load_model, load_weights, weights_path

__all__ = [
    "BUNDLED",
    "Model",
    "ModelDescription",
    "OpenVINOModel",
    "load_model",
    "load_weights",
    "weights_path",
]
