"""The models of the main process as its HTTP workers use them: their numbers and their shared memory."""

from collections.abc import Iterable
from dataclasses import replace
from math import ceil, inf
from typing import Final

from resnet_service.inference.engine import Engine
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.workers.calls import ModelUpdate
from resnet_service.server.workers.shared_memory import SharedMemory, SlotLayout, Slots, slot_bytes

_SLOTS_PER_PERMIT: Final = 1.5
"""Requests with several images need more slots than permits; a worker without a free one waits."""


class WorkerModel:
    """An engine that a worker has been told about, until it reports that no request uses it any more."""

    def __init__(self, engine: Engine, update: ModelUpdate, memory: SharedMemory) -> None:
        self.engine = engine
        self.generation = update.generation
        self.slots = Slots(memory.fd, update.slots, update.model.preprocessing.crop)
        self.devices = update.placement.devices.split(",")


class WorkerModels:
    """The engines that serve, each with a generation and slots for the crops of each worker.

    models = WorkerModels(backend, memory, workers=2)
    models.prepare(backend.engines.engines.values())
    models.refresh()
    connection.update(models.of_worker(0))
    """

    def __init__(self, backend: LocalBackend, memory: SharedMemory, workers: int) -> None:
        self._backend = backend
        self._memory = memory
        self._workers = workers
        self._generation = 0
        self._updates: dict[Engine, ModelUpdate] = {}
        self._slots: dict[Engine, SlotLayout] = {}  # of the first worker; of each engine that is not closed

    def prepare(self, engines: Iterable[Engine]) -> None:
        """Allocate slots for engines that are about to serve.

        Raises ServiceError if there is not enough memory.
        """
        for engine in engines:
            self._slots[engine] = self._find_slots(engine)

    def refresh(self) -> None:
        """Use the engines that serve now, which were prepared, and forget those that do not."""
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
        """Free the slots of an engine that no worker uses any more, unless another engine has them, too."""
        slots = self._slots.pop(engine, None)
        if slots is not None and slots not in self._slots.values():
            self._memory.free(slots, self._workers)

    def _find_slots(self, engine: Engine) -> SlotLayout:
        """Return the slots of the engine that serves the version now, or new ones if those are too small."""
        served, model = engine.served_model, engine.model
        size = slot_bytes(model.preprocessing.crop, len(model.labels), model.embedding_size)
        count = max(served.max_batch, ceil(_SLOTS_PER_PERMIT * engine.max_concurrency / self._workers))
        current = self._backend.engines.engines.get(engine.key)
        slots = None if current is None else self._slots.get(current)
        if slots is not None and slots.slot_bytes >= size and slots.count >= count:
            return slots
        return SlotLayout(self._memory.allocate(size, count * self._workers), size, count)

    def _add(self, engine: Engine) -> ModelUpdate:
        served, index = engine.served_model, self._backend.counters.of(engine.key).index
        self._memory.open_wait_s[index] = inf
        self._generation += 1
        return ModelUpdate(
            self._generation,
            index,
            served.model,
            served.placement,
            served.max_batch,
            self._slots[engine],
            engine.unreserved_per_worker,
            served.predictions.settings,
        )
