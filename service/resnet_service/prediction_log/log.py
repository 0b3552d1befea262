"""Choose predictions for the log, and write them in a thread that no request waits for."""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import structlog

from resnet_service.errors import first_line
from resnet_service.metric_labels import LogDropReason
from resnet_service.models import ModelDescription
from resnet_service.prediction_log.folder import LogFolder
from resnet_service.prediction_log.rows import MAX_CLASSES, SCHEMA, LoggedPrediction, to_batches
from resnet_service.prediction_log_metrics import PredictionLogMetrics
from resnet_service.runtimes import TopKResult

_log: Final[structlog.stdlib.BoundLogger] = structlog.stdlib.get_logger(__name__)

_MAX_QUEUE_BYTES: Final = 64_000_000
_MAX_QUEUE_ROWS: Final = 10_000
"""Predictions that wait for the thread: more are dropped. One that is larger is only taken if none waits."""
_MAX_FILE_BYTES: Final = 16_000_000
"""Bytes of rows after which a file is written before its time."""
_GATHER_S: Final = 0.5
"""Time after the first prediction in the queue at which all are converted, so that uploads are released."""
_RETENTION_INTERVAL_S: Final = 600.0
"""Time at which old files are deleted if no new one is written."""
_MESSAGE_INTERVAL_S: Final = 60.0
"""Time between two lines in the log of the service about predictions that were dropped."""


@dataclass(frozen=True)
class Sampling:
    """Which predictions are logged: a share of all, and all whose probability is below a limit.

    share: 0 to 1. below: a probability; None for no limit. max_rate: per second; more are dropped.
    """

    share: float = 1.0
    below: float | None = None
    max_rate: float = 100.0


class PredictionLog:
    """The prediction log of one process, from `start` to `close`.

    `add` never waits and never raises: what cannot be written is dropped and counted. A file is written every
    `interval_s` seconds, or earlier if it is large. A process that is killed loses the rows since then.

        log = PredictionLog(folder, Sampling(), metrics.prediction_log, interval_s=60, with_images=True)
        log.start()
        log.add(model, "request-1", None, jpeg, result)
        log.close(5.0)
    """

    def __init__(
        self,
        folder: LogFolder,
        sampling: Sampling,
        metrics: PredictionLogMetrics,
        *,
        interval_s: float,
        with_images: bool,
    ) -> None:
        self._folder = folder
        self._share = sampling.share
        self._below = 0.0 if sampling.below is None else sampling.below
        self._max_rate = sampling.max_rate
        self._interval_s = interval_s
        self._with_images = with_images
        self._max_file_bytes = min(_MAX_FILE_BYTES, folder.max_bytes // 4)
        self._metrics = metrics
        self._written = metrics.rows
        self._tokens = max(1.0, self._max_rate)
        self._counted_at = time.monotonic()
        self._dropped = 0  # since the last message
        self._message_at = -_MESSAGE_INTERVAL_S
        self._queue: list[LoggedPrediction] = []
        self._queue_bytes = 0
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        # Of the thread: rows that are converted and not written yet.
        self._batches: list[pa.RecordBatch] = []
        self._batch_bytes = 0
        self._due_at = 0.0
        self._retained_at = -_RETENTION_INTERVAL_S

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(
        self,
        model: ModelDescription,
        request_id: str,
        key: str | None,
        data: bytes | bytearray,
        result: TopKResult,
    ) -> None:
        """Log the result of one image, [k], if it is chosen; called by one thread only.

        `data` is the upload, which must not change any more, and `key` the name of the API key.
        """
        if result.probabilities[0] >= self._below and random.random() >= self._share:  # noqa: S311 - a share
            return
        if not self._take_token():
            self._drop("rate", 1)
            return
        class_ids = result.class_ids[:MAX_CLASSES].tolist()  # a copy: the memory may be that of a slot
        prediction = LoggedPrediction(
            time.time(),
            request_id,
            key,
            model.name,
            model.version,
            class_ids,
            result.probabilities[:MAX_CLASSES].tolist(),
            float(result.entropy),
            [model.labels[index] for index in class_ids],
            data,
        )
        with self._changed:
            waiting = len(self._queue)
            has_room = waiting < _MAX_QUEUE_ROWS and self._queue_bytes + len(data) <= _MAX_QUEUE_BYTES
            is_taken = not self._is_closing and (has_room or not waiting)
            if is_taken:
                self._queue.append(prediction)
                self._queue_bytes += len(data)
                if not waiting or self._is_urgent:
                    self._changed.notify()
        if not is_taken:
            self._drop("queue_full", 1)

    @property
    def is_running(self) -> bool:
        """Whether the thread runs; after `close`, because a call of the file system does not return."""
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> None:
        """Write everything that was added, and end the thread; gives up after `timeout_s` seconds."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if not self.is_running:
            return
        self._thread.join(timeout_s)
        if self.is_running:
            rows = len(self._queue) + sum(batch.num_rows for batch in tuple(self._batches))
            _log.error("prediction_log_incomplete", rows=rows, timeout_s=round(timeout_s, 1))

    @property
    def _is_urgent(self) -> bool:
        """Whether the queue is so long that the thread should not wait for more."""
        return self._queue_bytes > _MAX_QUEUE_BYTES // 4 or len(self._queue) > _MAX_QUEUE_ROWS // 4

    def _take_token(self) -> bool:
        now = time.monotonic()
        refill = (now - self._counted_at) * self._max_rate
        self._tokens = min(max(1.0, self._max_rate), self._tokens + refill)
        self._counted_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _drop(self, reason: LogDropReason, rows: int, cause: str | None = None) -> None:
        self._metrics.dropped.labels(reason).inc(rows)
        with self._changed:
            self._dropped += rows
            now = time.monotonic()
            if now - self._message_at < _MESSAGE_INTERVAL_S:
                return
            self._message_at, dropped, self._dropped = now, self._dropped, 0
        _log.warning("predictions_not_logged", rows=dropped, reason=reason, cause=cause)

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            predictions, is_closing = self._take()
            self._convert(predictions)
            if self._batches and (is_closing or time.monotonic() >= self._due_at):
                self._write()
            elif time.monotonic() - self._retained_at >= _RETENTION_INTERVAL_S:
                self._delete_old()

    def _take(self) -> tuple[Sequence[LoggedPrediction], bool]:
        """Wait until something has to be done; return what is in the queue, and whether it was the end."""
        with self._changed:
            retention_at = self._retained_at + _RETENTION_INTERVAL_S
            next_at = min(self._due_at, retention_at) if self._batches else retention_at
            timeout_s = max(0.0, next_at - time.monotonic())
            if self._changed.wait_for(lambda: self._is_closing or self._queue, timeout_s):
                self._changed.wait_for(lambda: self._is_closing or self._is_urgent, _GATHER_S)
            predictions, self._queue, self._queue_bytes = self._queue, [], 0
            return predictions, self._is_closing

    def _convert(self, predictions: Sequence[LoggedPrediction]) -> None:
        """Convert predictions to rows, and write a file whenever there are enough."""
        converted = 0
        try:
            for batch in to_batches(predictions, with_images=self._with_images):
                converted += batch.num_rows
                if not self._batches:
                    self._due_at = time.monotonic() + self._interval_s
                self._batches.append(batch)
                self._batch_bytes += batch.nbytes
                if self._batch_bytes >= self._max_file_bytes:
                    self._write()
        except (pa.ArrowException, MemoryError) as error:
            self._drop("write_failed", len(predictions) - converted, first_line(error))

    def _write(self) -> None:
        """Write the rows as a file, or drop them if that fails."""
        table = pa.Table.from_batches(self._batches, SCHEMA)
        try:
            left = self._retain(self._batch_bytes)
            written = self._folder.write(table)
        except Exception as error:  # noqa: BLE001
            # A file system of fsspec may raise anything; the thread goes on with the next rows.
            self._drop("write_failed", table.num_rows, first_line(error))
        else:
            self._written.inc(table.num_rows)
            self._metrics.bytes.set(left + written)
        self._batches, self._batch_bytes = [], 0

    def _delete_old(self) -> None:
        try:
            self._metrics.bytes.set(self._retain(0))
        except Exception as error:  # noqa: BLE001
            # As above; the next attempt is after the interval.
            _log.warning("prediction_log_not_cleaned", reason=first_line(error))

    def _retain(self, room: int) -> int:
        """Delete files until `room` more bytes fit, and return the bytes of those that are left."""
        self._retained_at = time.monotonic()
        deleted = self._metrics.deleted
        return self._folder.delete_old(room, lambda reason: deleted.labels(reason).inc())
