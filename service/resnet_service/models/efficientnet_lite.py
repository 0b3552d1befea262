"""EfficientNet-Lite0, a small network for ImageNet that is fast on CPUs.

EfficientNet-B0 (Tan and Le, 2019, https://arxiv.org/abs/1905.11946, table 1) without squeeze-and-excitation
and with ReLU6 instead of swish, which are the changes of EfficientNet-Lite:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. The blocks are those of
MobileNetV2 (Sandler et al., 2018, https://arxiv.org/abs/1801.04381).
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_STAGES: Final = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Number of blocks, kernel size, stride of the first block, expansion, and output channels of each stage."""

_STEM_CHANNELS: Final = 32
_HEAD_CHANNELS: Final = 1280
_DROPOUT: Final = 0.2


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, with 4,652,008 parameters for 1,000 classes.

    The names of the modules are those of the published weights. Input [N, 3, H, W] float, output logits
    [N, classes].
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = _STEM_CHANNELS
        for count, kernel_size, stride, expansion, outputs in _STAGES:
            for index in range(count):
                blocks.append(_Block(channels, outputs, kernel_size, 1 if index else stride, expansion))
                channels = outputs
        self._pad = SamePadding(kernel_size=3)
        self._conv_stem = nn.Conv2d(3, _STEM_CHANNELS, kernel_size=3, stride=2, bias=False)
        self._bn0 = _batch_norm(_STEM_CHANNELS)
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, _HEAD_CHANNELS, kernel_size=1, bias=False)
        self._bn1 = _batch_norm(_HEAD_CHANNELS)
        self._relu = nn.ReLU6(inplace=True)
        self._avgpool = nn.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(_DROPOUT)
        self._fc = nn.Linear(_HEAD_CHANNELS, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> logits [N, classes]."""
        x = self._blocks(self._relu(self._bn0(self._conv_stem(self._pad(x)))))
        x = self._relu(self._bn1(self._conv_head(x)))
        logits: Tensor = self._fc(self._dropout(torch.flatten(self._avgpool(x), 1)))
        return logits


class SamePadding(nn.Module):
    """The zeros of TensorFlow's padding "SAME" for a convolution with stride 2.

    The convolution then has an output of half the size, rounded up. If the number of zeros is odd, there is
    one more at the bottom and on the right than at the top and on the left; PyTorch's own padding is
    symmetric. `kernel_size` is that of the convolution, at least 2.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self._kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H + zeros, W + zeros]."""
        # No comparisons: torch.fx traces this method with symbols for the sizes.
        rows = self._kernel_size - 2 + x.shape[-2] % 2
        columns = self._kernel_size - 2 + x.shape[-1] % 2
        return functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


class _Block(nn.Module):
    """Expand the channels, filter each of them, and project them to `outputs` channels.

    If input and output have the same shape, their sum is the result.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        channels = inputs * expansion
        self._expands = expansion > 1
        self._is_residual = stride == 1 and inputs == outputs
        if self._expands:
            self._expand_conv = nn.Conv2d(inputs, channels, kernel_size=1, bias=False)
            self._bn0 = _batch_norm(channels)
        self._pad = SamePadding(kernel_size) if stride == 2 else None
        self._depthwise_conv = nn.Conv2d(
            channels,
            channels,
            kernel_size,
            stride,
            padding=kernel_size // 2 if stride == 1 else 0,
            groups=channels,
            bias=False,
        )
        self._bn1 = _batch_norm(channels)
        self._project_conv = nn.Conv2d(channels, outputs, kernel_size=1, bias=False)
        self._bn2 = _batch_norm(outputs)
        self._relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride], rounded up."""
        y: Tensor = self._relu(self._bn0(self._expand_conv(x))) if self._expands else x
        if self._pad is not None:
            y = self._pad(y)
        y = self._relu(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._is_residual else y


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # as published; PyTorch's defaults differ
