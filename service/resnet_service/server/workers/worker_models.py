"""The models of the main process as its HTTP workers use them: their numbers and their shared memory."""

from dataclasses import replace
from math import ceil, inf
from typing import Final

from resnet_service.inference.engine import Engine
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.workers.calls import ModelUpdate
from resnet_service.server.workers.shared_memory import SharedMemory, SlotLayout, slot_bytes

_SLOTS_PER_PERMIT: Final = 1.5
"""Requests with several images need more slots than permits; a worker without a free one waits."""


class WorkerModels:
    """The engines that serve, each with a generation and slots for the crops of each worker.

    models = WorkerModels(backend, memory, workers=2)
    models.refresh()
    connection.update(models.of_worker(0))
    """

    def __init__(self, backend: LocalBackend, memory: SharedMemory, workers: int) -> None:
        self._backend = backend
        self._memory = memory
        self._workers = workers
        self._generation = 0
        self._updates: dict[Engine, ModelUpdate] = {}
        self._slots: dict[int, SlotLayout] = {}  # of the first worker, by index of the version

    def refresh(self) -> None:
        """Add the engines that serve now, and forget those that do not.

        Raises ServiceError if there is not enough memory for their slots.
        """
        engines = self._backend.engines.engines.values()
        self._updates = {engine: self._updates.get(engine) or self._add(engine) for engine in engines}
        self.publish()

    def of_worker(self, index: int) -> list[tuple[Engine, ModelUpdate]]:
        """Return what the worker with this index has to know of each engine that serves."""
        return [
            (engine, replace(update, slots=update.slots.of_worker(index)))
            for engine, update in self._updates.items()
        ]

    def publish(self) -> None:
        """Write what changes with the load to the shared memory."""
        for engine, update in self._updates.items():
            self._memory.open_wait_s[update.index] = engine.open_wait_s()
            self._memory.largest_batch[update.index] = engine.largest_batch

    def engine_closed(self, engine: Engine) -> None:
        """Free the slots of a version that was unloaded and that no worker uses any more."""
        if engine.key in self._backend.engines.engines:
            return
        slots = self._slots.pop(self._backend.counters.of(engine.key).index, None)
        if slots is not None:
            self._memory.free(slots, self._workers)

    def _add(self, engine: Engine) -> ModelUpdate:
        """Allocate slots for a version, if it has none, or if those of the engine before are too small."""
        served, index = engine.served_model, self._backend.counters.of(engine.key).index
        size = slot_bytes(served.model.preprocessing.crop, len(served.model.labels))
        slots = self._slots.get(index)
        if slots is None or size > slots.slot_bytes:
            count = max(served.max_batch, ceil(_SLOTS_PER_PERMIT * engine.max_concurrency / self._workers))
            offset = self._memory.allocate(size, count * self._workers)
            slots = self._slots[index] = SlotLayout(offset, size, count)
        self._memory.open_wait_s[index] = inf
        self._generation += 1
        return ModelUpdate(
            self._generation,
            index,
            served.model,
            served.placement,
            served.max_batch,
            slots,
            engine.unreserved_per_worker,
        )
