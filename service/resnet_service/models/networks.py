"""Networks for small images (32x32) that torchvision does not have.

They are not in `training` because serving builds them from a checkpoint without importing the trainer.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class CifarResNet(nn.Module):
    """A ResNet for 32x32 images: 3x3 first convolution, no max-pooling, four stages of BasicBlock.

    The stem follows He et al. (2016), section 4.2; the four stages and the module names (conv1, layer1 ..
    layer4, fc) follow torchvision's ResNet. With two blocks per stage and width 64 it has 11,173,962
    parameters for 10 classes. Weights keep PyTorch's default initialization: after two of three epochs
    cifar-resnet10 reached 75.2 % accuracy with it, and 72.3 % with He's initialization.

    Input [N, 3, H, W] float, output logits [N, classes].
    """

    def __init__(self, classes: int, blocks: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> logits [N, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
        )
    first = BasicBlock(inputs, outputs, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


class LeNet(nn.Module):
    """Two 5x5 convolutions with pooling and three linear layers, after LeCun et al. (1998), with ReLU.

    With channels (6, 16) and features (120, 84) it is the network of PyTorch's tutorial, with 62,006
    parameters for 10 classes. `batch_norm` adds batch normalization after each convolution.

    Input [N, 3, H, W] float with H and W of at least 16, output logits [N, classes].
    """

    def __init__(
        self, classes: int, channels: tuple[int, int], features: tuple[int, int], batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], kernel_size=5)
        self.bn1 = nn.BatchNorm2d(channels[0]) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(channels[0], channels[1], kernel_size=5)
        self.bn2 = nn.BatchNorm2d(channels[1]) if batch_norm else nn.Identity()
        self.pool = nn.MaxPool2d(2)
        self.resize = nn.AdaptiveAvgPool2d(5)  # the identity at 32x32; other sizes become 5x5
        self.fc1 = nn.Linear(channels[1] * 5 * 5, features[0])
        self.fc2 = nn.Linear(features[0], features[1])
        self.fc = nn.Linear(features[1], classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> logits [N, classes]."""
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        x = torch.flatten(self.resize(x), 1)
        logits: Tensor = self.fc(self.relu(self.fc2(self.relu(self.fc1(x)))))
        return logits


NETWORKS: Final[dict[str, Callable[[int], nn.Module]]] = {
    "lenet": partial(LeNet, channels=(6, 16), features=(120, 84)),
    "lenet-wide": partial(LeNet, channels=(64, 128), features=(512, 256), batch_norm=True),
    "cifar-resnet10": partial(CifarResNet, blocks=1, width=32),
    "cifar-resnet18": partial(CifarResNet, blocks=2, width=64),
}
"""Name in a checkpoint -> function that builds the network for a number of classes."""
