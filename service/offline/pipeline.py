"""Pictures through a model in batches, decoded in threads while the device computes."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from service import images
from service.errors import DeviceOutOfMemory, InferenceFailed, ServiceError
from service.images import Crop, Preprocessing
from service.models import Model, Ranked, check_probabilities
from service.offline.sources import Source
from service.runtimes import Runtime


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: its best classes, best first, or why there are none.

    `decode_ms` is its own, `device_ms` its share of its batch; both 0 where there was an error.
    """

    name: str
    ranking: tuple[Ranked, ...] = ()
    decode_ms: float = 0.0
    device_ms: float = 0.0
    error: str | None = None


class Decoded(NamedTuple):
    """A picture's crop, the seconds it took, or the reason why there is none."""

    name: str
    crop: Crop | None
    seconds: float
    error: str | None


def classify(
    sources: Iterable[Source],
    model: Model,
    runtime: Runtime,
    *,
    top_k: int,
    batch_size: int,
    workers: int,
    max_pixels: int = images.DEFAULT_MAX_PIXELS,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Yield an outcome for each source, in order; what cannot be read or decoded becomes an error of its own.

    Decodes in `workers` threads, two batches ahead of the device at most, so memory does not grow with the
    number of sources. A batch that does not fit the device is halved, and so are those after it; `say` is
    told. Raises DeviceFailed.
    """
    classifier = Classifier(model, runtime, top_k, batch_size, say)
    ahead = 2 * batch_size + workers
    yield from classifier.run_all(decoded(sources, model.preprocessing, workers, ahead, max_pixels))


def decoded(
    sources: Iterable[Source],
    preprocessing: Preprocessing,
    workers: int,
    ahead: int,
    max_pixels: int = images.DEFAULT_MAX_PIXELS,
) -> Iterator[Decoded]:
    """Yield each source decoded, in order, by `workers` threads that are `ahead` pictures ahead at most."""

    def decode(source: Source) -> Decoded:
        try:
            data = source.read()
            started = time.perf_counter()
            crop = images.decode(data, preprocessing, max_pixels)
        except ServiceError as error:
            return Decoded(source.name, None, 0.0, str(error))
        return Decoded(source.name, crop, time.perf_counter() - started, None)

    pool = ThreadPoolExecutor(workers, "decode")
    begun: deque[Future[Decoded]] = deque()
    try:
        for source in sources:
            begun.append(pool.submit(decode, source))
            if len(begun) >= ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Classifier:
    """Puts batches of decoded pictures through a model.

    A batch that does not fit the device is halved, and `batch_size` with it; `say` is told.
    """

    def __init__(
        self,
        model: Model,
        runtime: Runtime,
        top_k: int,
        batch_size: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.batch_size = batch_size
        self._model = model
        self._runtime = runtime
        self._top_k = top_k
        self._say = say

    def run_all(self, pictures: Iterable[Decoded]) -> Iterator[Outcome]:
        """Yield an outcome for each picture, in order, in batches; raises DeviceFailed."""
        for batch in _batches(pictures, self):
            yield from self._run(batch)

    def _run(self, batch: Sequence[Decoded]) -> Iterator[Outcome]:
        crops = [picture.crop for picture in batch if picture.crop is not None]
        best, each_ms, full = None, 0.0, ""
        try:
            started = time.perf_counter()
            best = self._runtime.run(crops, self._top_k) if crops else None
            each_ms = (time.perf_counter() - started) * 1e3 / max(1, len(crops))
        except DeviceOutOfMemory as error:
            full = str(error)
        # Not in the except block, where the exception still holds what has filled the device.
        if full and len(crops) == 1:
            yield from (_failed(picture, f"{full}, even for one picture") for picture in batch)
            return
        if full:
            self.batch_size = max(1, min(self.batch_size, len(crops)) // 2)
            self._say(f"{full} at {len(crops)} pictures; going on with {self.batch_size}")
            yield from self.run_all(batch)
            return
        rows = iter(()) if best is None else zip(best.class_ids, best.probabilities, strict=True)
        for picture in batch:
            if picture.crop is None:
                yield Outcome(picture.name, error=picture.error)
                continue
            try:
                ids, probabilities = next(rows)
                check_probabilities(probabilities)
            except InferenceFailed as error:
                yield _failed(picture, str(error))
            else:
                ranking = self._model.rank(ids, probabilities)
                yield Outcome(picture.name, ranking, picture.seconds * 1e3, each_ms)


def _batches(pictures: Iterable[Decoded], classifier: Classifier) -> Iterator[list[Decoded]]:
    """Gather as many pictures that could be decoded as fit, with those between them that could not."""
    batch: list[Decoded] = []
    sound = 0
    for picture in pictures:
        batch.append(picture)
        sound += picture.crop is not None
        if sound >= classifier.batch_size:
            yield batch
            batch, sound = [], 0
    if batch:
        yield batch


def _failed(picture: Decoded, reason: str) -> Outcome:
    return Outcome(picture.name, error=picture.error or reason)
