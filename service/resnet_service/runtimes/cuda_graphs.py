"""Replay a network on a GPU as one CUDA graph per batch size, instead of launching its kernels one by one."""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final, NamedTuple

import torch
from torch import Tensor

from resnet_service.images import Crop
from resnet_service.runtimes.runtime import stack_crops

_WARM_UP_RUNS: Final = 3
"""Runs before a capture, so that cuDNN has selected its algorithms and the allocator has its memory."""

Outputs = tuple[Tensor, Tensor | None]
"""Probabilities [N, classes], and embeddings [N, D] if the network has them."""

_capture_lock = Lock()
"""A capture synchronizes the device, which is an error while another stream is being captured."""


class _CapturedGraph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    staging: Tensor  # [B, S, S, 3] uint8, page-locked host memory
    images: Tensor  # the same on the device; the graph's input
    outputs: Outputs  # on the device; the graph's outputs


class CudaGraphs:
    """A network as one CUDA graph for each batch size 1, 2, 4, ..., captured at the first use of the size.

    Belongs to one stream: call it while that stream is the current one. Each call overwrites the result of
    the previous one.
    """

    def __init__(self, forward: Callable[[Tensor], Outputs], device: torch.device) -> None:
        """`forward` maps [N, S, S, 3] uint8 on `device` to its outputs, without control flow on values."""
        self._forward = forward
        self._device = device
        self._graphs: dict[int, _CapturedGraph] = {}

    def __call__(self, crops: Sequence[Crop]) -> Outputs:
        """Run a batch of crops, [S, S, 3] uint8 each, and return the outputs on the device."""
        count = len(crops)
        size = 1 << (count - 1).bit_length()
        if size not in self._graphs:
            self._graphs[size] = self._capture(size, crops[0].shape)
        graph, staging, images, outputs = self._graphs[size]
        stack_crops(crops, out=staging[:count])
        images[:count].copy_(staging[:count], non_blocking=True)
        graph.replay()
        probabilities, embeddings = outputs
        return probabilities[:count], None if embeddings is None else embeddings[:count]

    def _capture(self, size: int, shape: tuple[int, ...]) -> _CapturedGraph:
        staging = torch.zeros(size, *shape, dtype=torch.uint8).pin_memory()
        stream = torch.cuda.current_stream(self._device)
        with _capture_lock:
            images = staging.to(self._device)
            for _ in range(_WARM_UP_RUNS):
                self._forward(images)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                outputs = self._forward(images)
        return _CapturedGraph(graph, staging, images, outputs)
