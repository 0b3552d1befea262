"""Replay a network on a GPU as one recorded graph for each batch size, instead of launching its kernels."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final, NamedTuple

import torch
from torch import Tensor

from resnet_service.images import Crop
from resnet_service.runtimes import stack_crops

_WARM_UP_RUNS: Final = 3
"""Before a recording, so that cuDNN has chosen its algorithms and the allocator has its memory."""

_recording = Lock()
"""Recording waits for the whole device, which must not happen while another stream is recorded."""


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    staging: Tensor  # [B, S, S, 3] uint8, page-locked
    images: Tensor  # the same on the device, which the graph reads
    answers: Tensor  # [B, classes] on the device, which the graph writes


class CudaGraphs:
    """A network for batches of 1, 2, 4, ... images, each recorded when first asked for.

    Of one stream: `__call__` is made with it as the current one, and its answer is overwritten by the next.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """`forward` takes [N, S, S, 3] uint8 on `device` to [N, classes] there, without looking at values."""
        self._forward = forward
        self._device = device
        self._recorded: dict[int, _Recorded] = {}

    def __call__(self, crops: Sequence[Crop]) -> Tensor:
        """[S, S, 3] uint8 each -> [N, classes], in the order of the crops."""
        count = len(crops)
        size = 1 << (count - 1).bit_length()
        if size not in self._recorded:
            self._recorded[size] = self._record(size, crops[0].shape)
        graph, staging, images, answers = self._recorded[size]
        stack_crops(crops, out=staging[:count])
        images[:count].copy_(staging[:count], non_blocking=True)
        graph.replay()
        return answers[:count]

    def _record(self, size: int, shape: tuple[int, ...]) -> _Recorded:
        staging = torch.zeros(size, *shape, dtype=torch.uint8).pin_memory()
        stream = torch.cuda.current_stream(self._device)
        with _recording:
            images = staging.to(self._device)
            for _ in range(_WARM_UP_RUNS):
                self._forward(images)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                answers = self._forward(images)
        return _Recorded(graph, staging, images, answers)
