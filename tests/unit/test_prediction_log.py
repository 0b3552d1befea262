"""The prediction log: which predictions it has, its bounds, and which files it deletes."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from resnet_service.errors import StorageError
from resnet_service.images import Preprocessing
from resnet_service.models import ModelDescription
from resnet_service.prediction_log import log as log_module
from resnet_service.prediction_log.folder import LogFolder
from resnet_service.prediction_log.log import PredictionLog, Sampling
from resnet_service.prediction_log_metrics import PredictionLogMetrics
from resnet_service.runtimes import TopKResult
from resnet_service.storage import resolve_location
from tests.support.images import encode, make_image
from tests.support.sandbox import wait_for

MODEL: Final = ModelDescription("pets", ("cat", "dog"), Preprocessing(8, 8, (0, 0, 0), (1, 1, 1)), "file")
DAY_S: Final = 86_400
NOW: Final = datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()


def result(probability: float = 0.9) -> TopKResult:
    probabilities = np.array([probability, 1 - probability], np.float32)
    return TopKResult(np.array([1, 0]), probabilities, np.float32(0.25), "cpu")


def folder(path: Path | str, max_bytes: int = 10**9, days: float = 30, now: float = NOW) -> LogFolder:
    return LogFolder(resolve_location(str(path)), max_bytes, days * DAY_S, lambda: now)


ALL: Final = Sampling()
FAST: Final = Sampling(max_rate=10**6)


class Log:
    """A prediction log with metrics of its own."""

    def __init__(self, target: LogFolder, sampling: Sampling = ALL, **options: Any) -> None:
        self._registry = CollectorRegistry()
        self.metrics = PredictionLogMetrics(self._registry)
        options = {"interval_s": 3600, "with_images": False, **options}
        self.log = PredictionLog(target, sampling, self.metrics, **options)

    def add(self, data: bytes = b"x", probability: float = 0.9, key: str | None = None) -> None:
        self.log.add(MODEL, "request", key, data, result(probability))

    def dropped(self, reason: str) -> float:
        return self.metric("dropped_total", reason=reason)

    def written(self) -> float:
        return self.metric("rows_total")

    def metric(self, name: str, **labels: str) -> float:
        value = self._registry.get_sample_value(f"inference_prediction_log_{name}", labels)
        assert value is not None
        return value


@contextmanager
def running(target: LogFolder, sampling: Sampling = ALL, **options: Any) -> Iterator[Log]:
    """Yield a log that runs, and close it at the end of the block."""
    log = Log(target, sampling, **options)
    log.log.start()
    yield log
    log.log.close(10)


def rows(path: Path) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return table


def files(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("with_images", [True, False])
def test_row_describes_the_image_and_its_prediction(tmp_path: Path, with_images: bool) -> None:
    jpeg = encode(make_image(64, 48))
    with running(folder(tmp_path), with_images=with_images) as log:
        log.add(jpeg, 0.75, "mobile")
        log.add(b"GIF89a...", 0.5)
    first, second = rows(tmp_path)
    assert datetime.now(UTC) >= first.pop("time") >= datetime(2026, 1, 1, tzinfo=UTC)
    assert first == {
        "request_id": "request",
        "key": "mobile",
        "model": "pets",
        "version": "1",
        "class_id": 1,
        "label": "dog",
        "probability": 0.75,
        "entropy": 0.25,
        "top_k": [
            {"class_id": 1, "label": "dog", "probability": 0.75},
            {"class_id": 0, "label": "cat", "probability": 0.25},
        ],
        "format": "jpeg",
        "width": 64,
        "height": 48,
        "bytes": len(jpeg),
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "image": jpeg if with_images else None,
    }
    assert (second["key"], second["format"], second["width"]) == (None, "gif", None)


@pytest.mark.parametrize(
    ("share", "below", "probabilities", "expected"),
    [
        (0, None, [0.1, 0.9], 0),
        (1, None, [0.1, 0.9], 2),
        (0, 0.5, [0.1, 0.5, 0.9], 1),
        (1, 0.5, [0.1, 0.9], 2),
    ],
)
def test_share_and_limit_choose_predictions(
    tmp_path: Path, share: float, below: float | None, probabilities: list[float], expected: int
) -> None:
    """All predictions below the limit are logged, and a share of the others."""
    with running(folder(tmp_path), Sampling(share, below)) as log:
        for probability in probabilities:
            log.add(probability=probability)
    assert log.written() == expected
    assert log.dropped("rate") == 0


def test_share_is_that_of_the_predictions(tmp_path: Path) -> None:
    with running(folder(tmp_path), Sampling(0.2, None, 10**6)) as log:
        for _ in range(5000):
            log.add()
    assert 800 < log.written() < 1200


def test_predictions_above_the_rate_are_dropped_and_counted(tmp_path: Path) -> None:
    with running(folder(tmp_path), Sampling(max_rate=5)) as log:
        started = time.monotonic()
        for _ in range(100):
            log.add()
        most = 5 + 5 * (time.monotonic() - started)
    assert log.written() + log.dropped("rate") == 100
    assert 5 <= log.written() <= most


def test_full_queue_drops_predictions(tmp_path: Path) -> None:
    """Bytes and rows that wait for the thread are bounded; one large image is taken if none waits."""
    log = Log(folder(tmp_path), FAST, with_images=True)  # not started: nothing is taken
    large = bytes(70_000_000)
    log.add(large)
    log.add()
    assert log.dropped("queue_full") == 1
    log = Log(folder(tmp_path), FAST)
    for _ in range(10_010):
        log.add()
    assert log.dropped("queue_full") == 10


class BlockedFolder(LogFolder):
    """A folder whose writes wait, as those to an object store that does not respond."""

    def __init__(self, path: Path) -> None:
        super().__init__(resolve_location(str(path)), 10**9, 30 * DAY_S)
        self.is_writing, self.release = threading.Event(), threading.Event()

    def write(self, table: pa.Table) -> int:
        self.is_writing.set()
        assert self.release.wait(30)
        return super().write(table)


def test_storage_that_does_not_respond_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions wait in the queue, and `close` gives up; what was in the queue is written afterwards."""
    monkeypatch.setattr(log_module, "_GATHER_S", 0.0)
    blocked = BlockedFolder(tmp_path)
    log = Log(blocked, FAST, interval_s=0)
    log.log.start()
    log.add()
    assert blocked.is_writing.wait(10)
    for _ in range(10_001):
        log.add()
    log.log.close(0.01)
    assert (log.written(), log.dropped("queue_full")) == (0, 1)
    blocked.release.set()
    log.log.close(20)
    assert log.written() == 10_001


def test_failed_write_is_counted_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is missing, and cannot be created, does not end the thread."""
    monkeypatch.setattr(log_module, "_GATHER_S", 0.0)
    blocker = tmp_path / "log"
    blocker.touch()
    with running(folder(blocker / "rows"), interval_s=0) as log:
        log.add()
        wait_for(lambda: log.dropped("write_failed") == 1)
        blocker.unlink()
        log.add()
    assert (log.written(), log.dropped("write_failed")) == (1, 1)


def test_label_that_is_not_text_is_logged_with_question_marks(tmp_path: Path) -> None:
    """JSON can have half of a pair of surrogates, which UTF-8 cannot."""
    model = ModelDescription("m", ("\ud800", "dog"), MODEL.preprocessing, "file")
    with running(folder(tmp_path)) as log:
        log.log.add(model, "request", None, b"x", result())
    assert (log.written(), log.dropped("write_failed")) == (1, 0)
    [row] = rows(tmp_path)
    assert [item["label"] for item in row["top_k"]] == ["dog", "?"]


def write(path: Path, *times: float, size: int = 100_000) -> None:
    """Write files of the log with noise, each at one of the times."""
    noise = np.random.default_rng(0).bytes(size)
    for written_at in times:
        folder(path, now=written_at).write(pa.table({"image": pa.array([noise], pa.binary())}))


def test_only_own_files_are_deleted(tmp_path: Path) -> None:
    """Those that are too old, and an unfinished one of a process that was killed an hour ago."""
    write(tmp_path, NOW - 31 * DAY_S, NOW - 29 * DAY_S, NOW)
    old, kept, newest = files(tmp_path)
    others = [
        *("predictions.parquet", "predictions-20200101T000000Z-labeled.parquet", "notes.txt"),
        "predictions-20201399T000000Z-0123456789ab-0.parquet",
        "x-predictions-20200101T000000Z-0123456789ab-0.parquet",
    ]
    unfinished = [
        f".predictions-2026{day}Z-0123456789ab-0.parquet.part" for day in ("1201T105959", "1201T110001")
    ]
    for name in (*others, *unfinished):
        (tmp_path / name).touch()
    (tmp_path / "predictions-20200101T000000Z-0123456789ab-1.parquet").mkdir()
    reasons: list[str] = []
    size = folder(tmp_path).delete_old(0, reasons.append)
    assert reasons == ["age", "age"]
    assert size == sum((tmp_path / name).stat().st_size for name in (kept, newest))
    left = {kept, newest, *others, unfinished[1], "predictions-20200101T000000Z-0123456789ab-1.parquet"}
    assert (set(files(tmp_path)), old in left) == (left, False)


def test_oldest_files_make_room_for_new_ones(tmp_path: Path) -> None:
    write(tmp_path, *(NOW - age for age in (50, 40, 30, 20, 10)))
    before = files(tmp_path)
    reasons: list[str] = []
    assert folder(tmp_path, 420_000).delete_old(100_000, reasons.append) < 320_000
    assert reasons == ["size", "size"]
    assert files(tmp_path) == before[2:]
    with pytest.raises(StorageError, match="more than the maximum size"):
        folder(tmp_path, 420_000).delete_old(420_001, reasons.append)


def test_log_never_exceeds_its_maximum_size(tmp_path: Path) -> None:
    """Files are so small that several fit, and the gauge has their size."""
    noise = np.random.default_rng(0)
    target = LogFolder(resolve_location(str(tmp_path)), 10_000_000, 30 * DAY_S)
    with running(target, FAST, with_images=True) as log:
        for _ in range(300):
            log.add(noise.bytes(100_000))
    sizes = [entry.stat().st_size for entry in tmp_path.iterdir()]
    assert 5_000_000 < sum(sizes) <= 10_000_000
    assert len(sizes) >= 2
    assert log.metric("bytes") == sum(sizes)


def test_file_is_written_after_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_GATHER_S", 0.0)
    is_written = threading.Event()

    class Folder(LogFolder):
        def write(self, table: pa.Table) -> int:
            size = super().write(table)
            is_written.set()
            return size

    with running(Folder(resolve_location(str(tmp_path)), 10**9, DAY_S), interval_s=0.05) as log:
        log.add()
        assert is_written.wait(10)
        assert len(rows(tmp_path)) == 1


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot be written to .*/file/log: Not a directory"):
        folder(tmp_path / "file/log").check()
    target = folder(tmp_path / "new/log")
    target.check()
    assert files(tmp_path / "new/log") == []
    assert (tmp_path / "new/log").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "uri", ["nosuch://bucket/log", "fsspec+nosuch://bucket/log", "s3://key:sec^ret@b/log"]
)
def test_unknown_protocol_is_an_error_without_the_uri(uri: str) -> None:
    with pytest.raises(StorageError, match=r"a URI with .* cannot be used") as caught:
        folder(uri)
    assert "sec^ret" not in str(caught.value)


def test_log_can_be_in_a_file_system_of_fsspec() -> None:
    import fsspec

    target = folder("fsspec+memory://bucket/log")
    target.check()
    with running(target) as log:
        log.add()
    names = fsspec.filesystem("memory").ls("/bucket/log", detail=False)
    assert (log.written(), len(names)) == (1, 1)
