"""The main process's side of one HTTP worker: it makes the worker's reservations and runs its crops."""

import asyncio
import pickle
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

import structlog

from resnet_service.batching import BatchResult
from resnet_service.batching.queue import QueueItem
from resnet_service.errors import ServiceError, ServiceUnavailable
from resnet_service.inference.engine import Engine, EngineReservation
from resnet_service.inference.served_model import QueuedCrop
from resnet_service.runtimes import TopKResult
from resnet_service.server.local_backend import LocalBackend
from resnet_service.server.workers.calls import ModelUpdate, answer_call, encode_error
from resnet_service.server.workers.frames import Frame, FrameChannel, Kind
from resnet_service.server.workers.shared_memory import SharedMemory, Slots

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)


class _Request:
    """One inference request of the worker, from RESERVE to RELEASE."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reservation: EngineReservation | None = None


class _Model:
    """A model that the worker has been told about, while requests may use it."""

    def __init__(self, update: ModelUpdate, memory: SharedMemory) -> None:
        self.update = update
        self.slots = Slots(memory.fd, update.slots, update.model.preprocessing.crop)
        self.devices = update.placement.devices.split(",")


class WorkerConnection:
    """Serves one worker, from its start to its end; on the event loop of the engines.

    `is_ready` tells whether the worker accepts requests, `was_ready` whether it ever did, and `lost` whether
    it has ended. The requests that it had then are cancelled and counted in `abandoned`.
    """

    def __init__(self, backend: LocalBackend, memory: SharedMemory) -> None:
        self.is_ready = self.was_ready = False
        self.lost = asyncio.Event()
        self.became_ready = asyncio.Event()
        """Also set if the worker ends before it is ready."""
        self.abandoned = 0
        self._backend = backend
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self._channel = FrameChannel(self._receive, self._end)
        self._models: dict[Engine, _Model] = {}
        self._requests: dict[int, _Request] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._running: dict[int, tuple[_Request, QueueItem[QueuedCrop, TopKResult]]] = {}
        self._handlers = {
            Kind.READY: self._ready,
            Kind.RESERVE: self._reserve,
            Kind.START: self._start,
            Kind.SUSPEND: self._suspend,
            Kind.RELEASE: self._release,
            Kind.CLAIM: self._claim,
            Kind.DROP: self._drop,
            Kind.RUN: self._run,
            Kind.CANCEL: self._cancel,
            Kind.CALL: self._call,
        }

    @property
    def channel(self) -> FrameChannel:
        """The protocol for the socket of the worker."""
        return self._channel

    def update(self, engine: Engine, update: ModelUpdate) -> None:
        """Tell the worker to use another model for further requests."""
        is_open = self._backend.engines.is_open
        self._models = {kept: model for kept, model in self._models.items() if is_open(kept)}
        self._models[engine] = _Model(update, self._memory)
        self._channel.send(Frame(Kind.UPDATE, number=update.generation, payload=pickle.dumps(update)))

    def drain(self) -> None:
        """Tell the worker to finish its requests and to end."""
        self.is_ready = False
        self._channel.send(Frame(Kind.DRAIN))

    def _receive(self, frame: Frame) -> None:
        try:
            self._handlers[Kind(frame.kind)](frame)
        except Exception as error:  # noqa: BLE001 - a damaged frame must not end the main process
            _log.error("worker_frame_invalid", kind=frame.kind, exc_info=error)
            self._channel.close()

    def _end(self) -> None:
        """Cancel everything that the worker has begun."""
        self.is_ready = False
        self.abandoned = len(self._requests)
        for task in self._tasks.values():
            task.cancel()
        for request, entry in self._running.values():
            if request.reservation is not None:
                request.reservation.cancel(entry)
            entry.future.cancel()
        for token in tuple(self._requests):
            self._release(Frame(Kind.RELEASE, reservation=token))
        self.lost.set()
        self.became_ready.set()

    def _ready(self, _: Frame) -> None:
        self.is_ready = self.was_ready = True
        self.became_ready.set()

    def _reserve(self, frame: Frame) -> None:
        engines, timeout_s = self._backend.engines, frame.a
        request = _Request(engines.current)
        engines.hold(request.engine)
        self._requests[frame.token] = request
        if request.engine.is_overloaded(timeout_s):
            self._begin(frame.token, self._reserve_after_delay(request, frame))
        else:
            self._answer(frame.token, self._try_reserve, request, timeout_s)

    def _try_reserve(self, request: _Request, timeout_s: float) -> Frame:
        reservation = request.engine.reserve(timeout_s)
        request.reservation = reservation
        generation = self._models[request.engine].update.generation
        return Frame(Kind.OK, slot=reservation.try_start(), number=generation)

    async def _reserve_after_delay(self, request: _Request, frame: Frame) -> Frame:
        engines = self._backend.engines
        await engines.delay_rejection()
        engines.release(request.engine)  # a reload may have replaced it, and the worker may have forgotten it
        request.engine = engines.current
        engines.hold(request.engine)
        return self._try_reserve(request, frame.a)

    def _start(self, frame: Frame) -> None:
        self._begin(frame.token, self._wait_until_started(self._reservation(frame)))

    async def _wait_until_started(self, reservation: EngineReservation) -> Frame:
        await reservation.start()
        return Frame(Kind.OK, slot=1)

    def _suspend(self, frame: Frame) -> None:
        self._reservation(frame).suspend()

    def _release(self, frame: Frame) -> None:
        task = self._tasks.pop(frame.reservation, None)  # the reservation itself may be in progress
        if task is not None:
            task.cancel()
        request = self._requests.pop(frame.reservation)
        if request.reservation is not None:
            request.reservation.suspend()
        self._backend.engines.release(request.engine)

    def _claim(self, frame: Frame) -> None:
        self._answer(frame.token, self._claim_slot, self._reservation(frame))

    def _claim_slot(self, reservation: EngineReservation) -> Frame:
        reservation.claim(is_further=True)
        return Frame(Kind.OK)

    def _drop(self, frame: Frame) -> None:
        reservation = self._reservation(frame)
        if not frame.number:
            reservation.claim()
        reservation.drop()

    def _run(self, frame: Frame) -> None:
        request, reservation = self._requests[frame.reservation], self._reservation(frame)
        model = self._models[request.engine]
        if not frame.b:
            reservation.claim()
        try:
            entry = reservation.submit(QueuedCrop(model.slots.crops[frame.slot], frame.number))
        except ServiceUnavailable as error:
            self._fail(frame.token, error)
            return
        self._running[frame.token] = (request, entry)
        entry.future.add_done_callback(partial(self._finish, frame, model))

    def _finish(self, frame: Frame, model: _Model, future: asyncio.Future[BatchResult[TopKResult]]) -> None:
        """Answer a RUN: write its result to the slot. The slots of a lost worker belong to its successor."""
        del self._running[frame.token]
        if self.lost.is_set():
            return
        if future.cancelled():
            self._fail(frame.token, ServiceUnavailable("the request was cancelled"))
            return
        error = future.exception()
        if error is not None:
            self._fail(frame.token, error)
            return
        output = future.result()
        model.slots.write_result(frame.slot, output.result)
        self._channel.send(
            Frame(
                Kind.OK,
                token=frame.token,
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
            request, entry = self._running[frame.token]
            if request.reservation is not None:
                request.reservation.cancel(entry)
            entry.future.cancel()

    def _call(self, frame: Frame) -> None:
        self._begin(frame.token, self._run_call(frame.payload))

    async def _run_call(self, payload: bytes) -> Frame:
        return Frame(Kind.OK, payload=pickle.dumps(await answer_call(self._backend, payload)))

    def _reservation(self, frame: Frame) -> EngineReservation:
        """Return the reservation of a frame, with the deadline of the frame, if it has one."""
        reservation = self._requests[frame.reservation].reservation
        assert reservation is not None
        if frame.a:
            reservation.deadline = frame.a
        return reservation

    def _begin(self, token: int, work: Coroutine[Any, Any, Frame]) -> None:
        """Answer a request with the result of a coroutine."""
        self._tasks[token] = self._loop.create_task(self._finish_task(token, work))

    async def _finish_task(self, token: int, work: Coroutine[Any, Any, Frame]) -> None:
        try:
            frame = await work
        except Exception as error:  # noqa: BLE001 - sent to the worker
            self._fail(token, error)
        except asyncio.CancelledError:
            self._fail(token, ServiceUnavailable("the request was cancelled"))
            raise
        else:
            self._channel.send(frame._replace(token=token))
        finally:
            self._tasks.pop(token, None)

    def _answer(self, token: int, function: Any, *arguments: Any) -> None:
        """Answer a request with the result of a function."""
        try:
            frame: Frame = function(*arguments)
        except ServiceError as error:
            self._fail(token, error)
        else:
            self._channel.send(frame._replace(token=token))

    def _fail(self, token: int, error: BaseException) -> None:
        if not isinstance(error, ServiceError):
            _log.error("worker_request_failed", exc_info=error)
        self._channel.send(Frame(Kind.FAILED, token=token, payload=encode_error(error)))
