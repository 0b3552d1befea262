"""What every one of them serves: torchvision's ResNet-50 in eager fp32, after its weights' own transforms.

The environment has PORT, WEIGHTS (a state dict) and, where nothing is to be computed, NOOP.
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
    """ResultsDirectory at once, so that what is left is decoding and serving."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] -> [N, 1000]."""
        return torch.zeros(len(images), 1000)


class Classifier:
    """The network and what stands before and after it."""

    def __init__(self) -> None:
        self._transforms = ResNet50_Weights.DEFAULT.transforms()
        self._network = NoOp() if "NOOP" in os.environ else resnet50()
        if "NOOP" not in os.environ:
            self._network.load_state_dict(torch.load(os.environ["WEIGHTS"], weights_only=True))
        self._network.eval()

    def decode(self, file: Any) -> Tensor:
        """Read one image: a file of JPEG, or an image of Pillow's -> [3, 224, 224]."""
        image = file if isinstance(file, Image.Image) else Image.open(file)
        pixels: Tensor = self._transforms(image.convert("RGB"))
        return pixels

    @torch.inference_mode()
    def classify(self, images: Tensor) -> list[dict[str, Any]]:
        """[N, 3, 224, 224] -> an answer for each, with the five best classes."""
        best = self._network(images).softmax(1).topk(5)
        return [
            {"class_ids": ids, "probabilities": probabilities}
            for ids, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
