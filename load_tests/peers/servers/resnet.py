"""The classifier that all other servers serve: torchvision's ResNet-50 in eager fp32, with its transforms.

Environment variables: PORT, WEIGHTS (file of a state dict), and NOOP to skip the network.
"""

import os
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

PORT = int(os.environ["PORT"])
MAX_BATCH = 8


class NoOp(nn.Module):
    """Replaces the network, so that a measurement contains decoding and serving only."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, 1000]."""
        return torch.zeros(len(images), 1000)


class Classifier:
    """The network with its preprocessing and postprocessing."""

    def __init__(self) -> None:
        self._transforms = ResNet50_Weights.DEFAULT.transforms()
        self._network = NoOp() if "NOOP" in os.environ else resnet50()
        if "NOOP" not in os.environ:
            self._network.load_state_dict(torch.load(os.environ["WEIGHTS"], weights_only=True))
        self._network.eval()

    def decode(self, file: Any) -> Tensor:
        """Decode and transform a JPEG file, or transform a Pillow image -> [3, 224, 224]."""
        image = file if isinstance(file, Image.Image) else Image.open(file)
        pixels: Tensor = self._transforms(image.convert("RGB"))
        return pixels

    @torch.inference_mode()
    def classify(self, images: Tensor) -> list[dict[str, Any]]:
        """[N, 3, 224, 224] -> the five best classes of each image."""
        best = self._network(images).softmax(1).topk(5)
        return [
            {"class_ids": ids, "probabilities": probabilities}
            for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
