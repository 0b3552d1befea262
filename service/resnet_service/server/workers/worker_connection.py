"""The main process's side of one HTTP worker: it makes the worker's reservations and runs its crops."""

import asyncio
import pickle
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import structlog

from resnet_service.batching import BatchResult, Lane, QueueItem
from resnet_service.errors import ModelNotFound, ServiceError, ServiceUnavailable
from resnet_service.inference.engine import Engine, EngineReservation
from resnet_service.inference.served_model import QueuedCrop
from resnet_service.runtimes import TopKResult
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.workers.calls import ModelUpdate, Update, answer_call, encode_error
from resnet_service.server.workers.frames import Frame, FrameChannel, Kind
from resnet_service.server.workers.shared_memory import SharedMemory
from resnet_service.server.workers.worker_models import WorkerModel

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class _Request:
    """One inference request of the worker, from RESERVE to RELEASE."""

    def __init__(self) -> None:
        self.model: WorkerModel
        self.reservation: EngineReservation | None = None


class WorkerConnection:
    """Serves one worker, from its start to its end; on the event loop of the engines.

    channel: the protocol for the socket of the worker.
    is_ready: whether the worker accepts requests.
    was_ready: whether it ever did.
    became_ready: set when it does, or when it has ended before.
    is_updated: set when it uses the models of the last `update`, or when it has ended.
    lost: set when it has ended; what it had begun is then cancelled.
    """

    def __init__(self, backend: LocalBackend, memory: SharedMemory) -> None:
        self.channel = FrameChannel(self._receive, self._end, on_read=self._publish_wait)
        self.is_ready = self.was_ready = False
        self.became_ready = asyncio.Event()
        self.is_updated = asyncio.Event()
        self.lost = asyncio.Event()
        self._updates = 0  # that the worker has not applied yet
        self._backend = backend
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self._models: dict[int, WorkerModel] = {}  # by generation
        self._current: dict[int, WorkerModel] = {}  # those that serve, by index of the version
        self._requests: dict[int, _Request] = {}
        self._tasks: dict[int, asyncio.Task[Frame]] = {}
        self._running: dict[int, tuple[Engine, QueueItem[QueuedCrop, TopKResult]]] = {}
        self._handlers: dict[int, Callable[[Frame], None]] = {
            Kind.READY: self._ready,
            Kind.RESERVE: self._reserve,
            Kind.START: self._start,
            Kind.SUSPEND: self._suspend,
            Kind.RELEASE: self._release,
            Kind.DROP: self._drop,
            Kind.RUN: self._run,
            Kind.RUN_UNRESERVED: self._run_unreserved,
            Kind.CANCEL: self._cancel,
            Kind.CALL: self._call,
            Kind.RETIRED: self._retire,
            Kind.UPDATED: self._updated,
        }

    def update(self, models: Sequence[tuple[Engine, ModelUpdate]]) -> None:
        """Tell the worker to use these models for further requests.

        Without a connection, this does nothing: it is called again when there is one.
        """
        if not self.channel.is_connected:
            return
        added = [pair for pair in models if pair[1].generation not in self._models]
        for engine, update in added:
            self._backend.engines.hold(engine)
            self._models[update.generation] = WorkerModel(engine, update, self._memory)
        self._current = {update.index: self._models[update.generation] for _, update in models}
        message = Update(
            tuple(update.generation for _, update in models),
            tuple(update for _, update in added),
            self._backend.models.traffic,
            self._backend.api_keys,
        )
        self.channel.send(Frame(Kind.UPDATE, payload=pickle.dumps(message)))
        self._updates += 1
        self.is_updated.clear()

    def drain(self) -> None:
        """Tell the worker to finish its requests and to end."""
        self.is_ready = False
        self.channel.send(Frame(Kind.DRAIN))

    def _receive(self, frame: Frame) -> None:
        try:
            self._handlers[frame.kind](frame)
        except Exception as error:  # noqa: BLE001
            # A damaged frame must not end the main process.
            _log.error("worker_frame_invalid", kind=frame.kind, exc_info=error)
            self.channel.close()

    def _end(self) -> None:
        self.is_ready = False
        self.lost.set()
        self.is_updated.set()
        self.became_ready.set()
        for task in self._tasks.values():
            task.cancel()
        for engine, entry in self._running.values():
            engine.cancel(entry)
        for request in self._requests.values():
            if request.reservation is not None:
                request.reservation.suspend()
        self._requests.clear()
        for model in self._models.values():
            self._backend.engines.release(model.engine)

    def _ready(self, _: Frame) -> None:
        self.is_ready = self.was_ready = True
        self.became_ready.set()

    def _updated(self, _: Frame) -> None:
        self._updates -= 1
        if not self._updates:
            self.is_updated.set()

    def _publish_wait(self) -> None:
        for index, model in self._current.items():
            self._memory.open_wait_s[index] = model.engine.open_wait_s()

    def _reserve(self, frame: Frame) -> None:
        request = self._requests[frame.token] = _Request()
        self._answer(frame.token, partial(self._reserve_or_delay, request, frame))

    def _reserve_or_delay(self, request: _Request, frame: Frame) -> Frame | None:
        request.model = self._find(frame)
        if request.model.engine.admission_wait(Lane(frame.lane)) <= frame.a:
            return self._reserve_now(request, frame)
        self._begin(frame.token, self._reserve_after_delay(request, frame))
        return None

    def _find(self, frame: Frame) -> WorkerModel:
        """Return the model for a RESERVE: a certain generation, or the one that serves now."""
        model = self._models[frame.number] if frame.number else self._current.get(frame.slot)
        if model is None:
            raise ModelNotFound("the model was unloaded")
        return model

    def _reserve_now(self, request: _Request, frame: Frame) -> Frame:
        reservation = request.reservation = request.model.engine.reserve(frame.a, Lane(frame.lane))
        return Frame(Kind.OK, slot=reservation.try_start(), number=request.model.generation)

    async def _reserve_after_delay(self, request: _Request, frame: Frame) -> Frame:
        deadline = self._loop.time() + frame.a
        await self._backend.engines.rejections.delay(request.model.engine, deadline, Lane(frame.lane))
        # A reload may have replaced the model, and the worker may have forgotten it.
        request.model = self._find(frame)
        return self._reserve_now(request, frame._replace(a=deadline - self._loop.time()))

    def _start(self, frame: Frame) -> None:
        self._begin(frame.token, self._wait_until_started(self._reservation(frame)))

    async def _wait_until_started(self, reservation: EngineReservation) -> Frame:
        await reservation.start()
        return Frame(Kind.OK)

    def _suspend(self, frame: Frame) -> None:
        self._reservation(frame).suspend()

    def _release(self, frame: Frame) -> None:
        task = self._tasks.get(frame.reservation)  # the RESERVE itself
        if task is not None:
            task.cancel()
        reservation = self._requests.pop(frame.reservation).reservation
        if reservation is not None:
            reservation.suspend()

    def _drop(self, frame: Frame) -> None:
        reservation = self._reservation(frame)
        if reservation.claim():
            reservation.drop()

    def _run(self, frame: Frame) -> None:
        reservation = self._reservation(frame)
        reservation.lane = Lane(frame.lane)
        submit = partial(reservation.submit, is_first=reservation.claim())
        self._queue(frame, self._requests[frame.reservation].model, submit)

    def _run_unreserved(self, frame: Frame) -> None:
        model = self._models[frame.reservation]
        self._queue(frame, model, lambda queued: model.engine.enqueue(queued, frame.a, Lane(frame.lane)))

    def _queue(
        self,
        frame: Frame,
        model: WorkerModel,
        submit: Callable[[QueuedCrop], QueueItem[QueuedCrop, TopKResult]],
    ) -> None:
        try:
            entry = submit(QueuedCrop(model.slots.crops[frame.slot], frame.number, frame.b == 1))
        except ServiceUnavailable as error:
            self._fail(frame.token, error)
            return
        self._running[frame.token] = (model.engine, entry)
        entry.future.add_done_callback(partial(self._finish, frame.token, frame.slot, model))

    def _finish(
        self, token: int, slot: int, model: WorkerModel, future: asyncio.Future[BatchResult[TopKResult]]
    ) -> None:
        """Answer a RUN: write its result to the slot. The slots of a lost worker belong to its successor."""
        del self._running[token]
        if self.lost.is_set():
            return
        if future.cancelled():
            self._fail(token, ServiceUnavailable("the request was cancelled"))
            return
        error = future.exception()
        if error is not None:
            self._fail(token, error)
            return
        output = future.result()
        model.slots.write_result(slot, output.result)
        self.channel.send(
            Frame(
                Kind.OK,
                slot=output.batch_size,
                token=token,
                reservation=model.devices.index(output.result.device),
                number=len(output.result.class_ids),
                a=output.enqueued_at,
                b=output.started_at,
                c=output.finished_at,
            )
        )

    def _cancel(self, frame: Frame) -> None:
        if frame.token in self._tasks:
            self._tasks[frame.token].cancel()
        elif frame.token in self._running:
            engine, entry = self._running[frame.token]
            engine.cancel(entry)

    def _call(self, frame: Frame) -> None:
        self._begin(frame.token, self._run_call(frame.payload))

    async def _run_call(self, payload: bytes) -> Frame:
        return Frame(Kind.OK, payload=pickle.dumps(await answer_call(self._backend, payload)))

    def _retire(self, frame: Frame) -> None:
        self._backend.engines.release(self._models.pop(frame.number).engine)

    def _reservation(self, frame: Frame) -> EngineReservation:
        """Return the reservation of a frame, with the deadline of the frame, if it has one."""
        reservation = self._requests[frame.reservation].reservation
        assert reservation is not None
        if frame.a:
            reservation.deadline = frame.a
        return reservation

    def _answer(self, token: int, function: Callable[[], Frame | None]) -> None:
        """Answer a request with the result of a function; None if the answer follows later."""
        try:
            frame = function()
        except ServiceError as error:
            self._fail(token, error)
        else:
            if frame is not None:
                self.channel.send(frame._replace(token=token))

    def _begin(self, token: int, work: Coroutine[Any, Any, Frame]) -> None:
        """Answer a request with the result of a coroutine."""
        task = self._tasks[token] = self._loop.create_task(work)
        task.add_done_callback(partial(self._answer_ended, token))

    def _answer_ended(self, token: int, task: asyncio.Task[Frame]) -> None:
        """Answer a request whose task has ended, perhaps before it began."""
        del self._tasks[token]
        if task.cancelled():
            self._fail(token, ServiceUnavailable("the request was cancelled"))
        elif (error := task.exception()) is not None:
            self._fail(token, error)  # any error: foreign code can run in a call
        else:
            self.channel.send(task.result()._replace(token=token))

    def _fail(self, token: int, error: BaseException) -> None:
        if not isinstance(error, ServiceError):
            _log.error("worker_request_failed", exc_info=error)
        self.channel.send(Frame(Kind.FAILED, token=token, payload=encode_error(error)))
