"""The memory that the main process and its HTTP workers share: crops, results, and counters.

It is a file without a name, so that nothing is left behind, and no size of /dev/shm limits it.

    [state][slots of worker 0][slots of worker 1]...[slots of worker 0 for the next model]...
"""

import mmap
import os
import tempfile
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from resnet_service.errors import ServiceError
from resnet_service.images import Crop
from resnet_service.inference.statistics import MAX_VERSIONS, Counter, RequestCounters
from resnet_service.runtimes import TopKResult

MAX_WORKERS: Final = 160
_ALIGNMENT: Final = mmap.ALLOCATIONGRANULARITY
_RESULT_BYTES: Final = 12
"""Per class: its index, int64, and its probability, fp32. The embedding follows, 4 bytes per value."""
_WORKERS_AT: Final = -(-16 * MAX_VERSIONS // 64) * 64
_REQUEST_COUNTERS_AT: Final = _WORKERS_AT + 24 * MAX_WORKERS
_REQUEST_COUNTERS_BYTES: Final = 128
"""Per worker and version: two lines of the processor's cache, so that workers do not slow each other down."""
_STATE_BYTES: Final = (
    -(-(_REQUEST_COUNTERS_AT + _REQUEST_COUNTERS_BYTES * MAX_WORKERS * MAX_VERSIONS) // _ALIGNMENT)
    * _ALIGNMENT
)


@dataclass(frozen=True)
class SlotLayout:
    """Where the slots of one worker lie in the memory: `count` slots of `slot_bytes` bytes from `offset`."""

    offset: int
    slot_bytes: int
    count: int

    def of_worker(self, index: int) -> "SlotLayout":
        """Return the layout of another worker, if this one is that of the first."""
        return replace(self, offset=self.offset + index * self.count * self.slot_bytes)


class SharedMemory:
    """The memory of the main process; workers open it by its file descriptor, `fd`.

    Only one process writes each of these:

    upload_bytes: per worker, the bytes of request bodies in its memory.
    requests: per worker, the inference requests in progress.
    beats: per worker, when its event loop last ran; see `Heartbeat`.
    open_wait_s: per version of a model, by `VersionCounters.index`: `Engine.open_wait_s`.
    largest_batch: per version: `Engine.largest_batch`.
    """

    def __init__(self, fd: int | None = None) -> None:
        """Create the memory, or open that of the main process."""
        self.fd = _create_file() if fd is None else fd
        if fd is None:
            _allocate(self.fd, 0, _STATE_BYTES)
        state = memoryview(mmap.mmap(self.fd, _STATE_BYTES))
        self.open_wait_s = state[: 8 * MAX_VERSIONS].cast("d")
        self.largest_batch = state[8 * MAX_VERSIONS : 16 * MAX_VERSIONS].cast("Q")
        workers = state[_WORKERS_AT:_REQUEST_COUNTERS_AT]
        self.upload_bytes = workers[: 8 * MAX_WORKERS].cast("Q")
        self.requests = workers[8 * MAX_WORKERS : 16 * MAX_WORKERS].cast("Q")
        self.beats = workers[16 * MAX_WORKERS :].cast("d")
        self._state = state

    def request_counters(self, worker: int, version: int) -> RequestCounters:
        """Return the counters of a worker for a version, by their indexes. A new worker continues them."""
        start = _REQUEST_COUNTERS_AT + (worker * MAX_VERSIONS + version) * _REQUEST_COUNTERS_BYTES
        return RequestCounters(self._state[start : start + 8 * len(Counter)].cast("Q"))

    def free(self, slots: SlotLayout, workers: int) -> None:
        """Return the memory of all workers' slots to the system; their place in the file stays unused."""
        if hasattr(mmap, "MADV_REMOVE"):  # Linux
            size = _aligned(slots.slot_bytes * slots.count * workers)
            with mmap.mmap(self.fd, size, offset=slots.offset) as memory:
                memory.madvise(mmap.MADV_REMOVE)

    def allocate(self, slot_bytes: int, count: int) -> int:
        """Add `count` slots, and return their offset.

        Raises ServiceError if there is not enough memory.
        """
        offset = os.fstat(self.fd).st_size
        size = _aligned(slot_bytes * count)
        try:
            _allocate(self.fd, offset, size)
        except OSError as error:
            raise ServiceError(
                f"cannot allocate {size / 1e6:,.0f} MB of memory for the HTTP workers: {error.strerror}; "
                "reduce --workers or --max-concurrency"
            ) from error
        return offset


class Slots:
    """The slots of one worker, mapped into this process. A slot holds a crop, and later its result."""

    def __init__(self, fd: int, layout: SlotLayout, side: int) -> None:
        """Map the slots, for crops of `side` x `side` pixels."""
        self.count = layout.count
        start = layout.offset // _ALIGNMENT * _ALIGNMENT
        skipped = layout.offset - start
        memory = mmap.mmap(fd, skipped + layout.slot_bytes * layout.count, offset=start)
        buffer = np.frombuffer(memory, np.uint8, offset=skipped).reshape(layout.count, layout.slot_bytes)
        # Views are created once: each takes 1 us.
        self.crops: list[Crop] = [row[: 3 * side**2].reshape(side, side, 3) for row in buffer]
        self._buffer = buffer

    def write_result(self, slot: int, result: TopKResult) -> None:
        """Replace the crop in a slot by the result of one image."""
        k = len(result.class_ids)
        row = self._buffer[slot]
        row[: 8 * k].view(np.int64)[:] = result.class_ids
        start = _RESULT_BYTES * k + 4
        values = row[8 * k : start].view(np.float32)
        values[:k] = result.probabilities
        values[k] = result.entropy
        if result.embedding is not None:
            row[start : start + result.embedding.nbytes].view(np.float32)[:] = result.embedding

    def read_result(self, slot: int, k: int, device: str, embedding_size: int | None = None) -> TopKResult:
        """Return a copy of the result with `k` classes, and with the embedding if its length is set."""
        row = self._buffer[slot]
        ids: npt.NDArray[np.int64] = row[: 8 * k].view(np.int64).copy()
        start = _RESULT_BYTES * k + 4
        values: npt.NDArray[np.float32] = row[8 * k : start].view(np.float32).copy()
        embedding: npt.NDArray[np.float32] | None = None
        if embedding_size is not None:
            embedding = row[start : start + 4 * embedding_size].view(np.float32).copy()
        return TopKResult(ids, values[:k], values[k], device, embedding)


def slot_bytes(side: int, classes: int, embedding_size: int | None) -> int:
    """Return the bytes of a slot, for a crop of `side` x `side` pixels and a result of `classes` classes.

    `embedding_size` is the length of the model's embeddings, if it has any.
    """
    return -(-max(3 * side**2, _RESULT_BYTES * classes + 4 * (1 + (embedding_size or 0))) // 64) * 64


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _create_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("resnet-service")
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


def _allocate(fd: int, offset: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):  # reports that there is too little memory; a later access would crash
        os.posix_fallocate(fd, offset, size)
    else:
        os.ftruncate(fd, offset + size)
