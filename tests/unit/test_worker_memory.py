"""The memory that the main process shares with its HTTP workers."""

import errno
import os

import numpy as np
import pytest

from resnet_service.errors import ServiceError
from resnet_service.runtimes import TopKResult
from resnet_service.server.workers import shared_memory
from resnet_service.server.workers.shared_memory import SharedMemory, SlotLayout, Slots, slot_bytes

SIDE, CLASSES, EMBEDDING_SIZE = 33, 1000, 512


def create(workers: int, count: int) -> tuple[SharedMemory, SlotLayout]:
    memory = SharedMemory()
    size = slot_bytes(SIDE, CLASSES, EMBEDDING_SIZE)
    return memory, SlotLayout(memory.allocate(size, count * workers), size, count)


def test_crops_of_all_slots_and_workers_are_separate() -> None:
    """What one process writes to a slot, the other one reads from it, and no other slot changes."""
    memory, layout = create(workers=3, count=4)
    opened = SharedMemory(memory.fd)
    written = [Slots(memory.fd, layout.of_worker(index), SIDE) for index in range(3)]
    read = [Slots(opened.fd, layout.of_worker(index), SIDE) for index in range(3)]
    for index, slots in enumerate(written):
        for slot in range(4):
            slots.crops[slot][:] = 10 * index + slot
    for index, slots in enumerate(read):
        for slot in range(4):
            assert (slots.crops[slot] == 10 * index + slot).all()


@pytest.mark.parametrize("with_embedding", [False, True])
@pytest.mark.parametrize("k", [1, 5, CLASSES])
def test_result_replaces_the_crop(k: int, with_embedding: bool) -> None:
    """A result with all classes and the embedding can be larger than the crop of a small model."""
    memory, layout = create(workers=1, count=2)
    slots = Slots(memory.fd, layout, SIDE)
    slots.crops[1][:] = 7
    embedding = np.linspace(-1, 1, EMBEDDING_SIZE, dtype=np.float32) if with_embedding else None
    probabilities = np.linspace(1, 0, k, dtype=np.float32)
    result = TopKResult(np.arange(k)[::-1], probabilities, np.float32(0.25), "cuda:1", embedding)
    slots.write_result(0, result)
    copy = slots.read_result(0, k, "cuda:1", EMBEDDING_SIZE if with_embedding else None)
    assert copy.device == "cuda:1"
    np.testing.assert_array_equal(copy.class_ids, result.class_ids)
    np.testing.assert_array_equal(copy.probabilities, result.probabilities)
    assert copy.entropy == result.entropy
    np.testing.assert_array_equal(copy.embedding, embedding)
    assert (slots.crops[1] == 7).all()
    slots.crops[0][:] = 0
    assert copy.class_ids[0] == k - 1  # a copy, because the slot is used again


def test_counters_of_one_process_are_seen_by_the_others() -> None:
    """Each worker has its own counter."""
    memory = SharedMemory()
    opened = SharedMemory(memory.fd)
    opened.upload_bytes[2] = 5
    opened.requests[2] = 6
    memory.open_wait_s[0] = 0.25
    assert list(memory.upload_bytes[:4]) == [0, 0, 5, 0]
    assert list(memory.requests[:4]) == [0, 0, 6, 0]
    assert opened.open_wait_s[0] == 0.25


def test_too_little_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator learns what to change, before the first image is written."""

    def allocate(fd: int, offset: int, size: int) -> None:  # noqa: ARG001
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    memory = SharedMemory()
    monkeypatch.setattr(shared_memory, "_allocate", allocate)
    with pytest.raises(ServiceError, match=r"58 MB.*reduce --workers or --max-concurrency"):
        memory.allocate(150_528, 384)


def test_memory_has_no_name_that_a_killed_process_could_leave_behind() -> None:
    """It is neither in /dev/shm nor in the folder for temporary files."""
    memory = SharedMemory()
    assert os.fstat(memory.fd).st_nlink == 0
