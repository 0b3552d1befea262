"""Images through a model in batches, decoded in threads while the device computes."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from resnet_service.errors import DeviceOutOfMemoryError, InferenceError, ServiceError
from resnet_service.images import DEFAULT_MAX_PIXELS, Crop, Preprocessing, decode_image
from resnet_service.inference.inputs import ImageInput
from resnet_service.models import Model, Prediction, validate_probabilities
from resnet_service.runtimes import Runtime


@dataclass(frozen=True)
class ClassificationResult:
    """What became of one image: its best classes, best first, or why there are none.

    `decode_ms` is its own, `device_ms` its share of its batch; both 0 where there was an error.
    """

    name: str
    ranking: tuple[Prediction, ...] = ()
    decode_ms: float = 0.0
    device_ms: float = 0.0
    error: str | None = None


class DecodedImage(NamedTuple):
    """An image's crop, the seconds it took, or the reason why there is none."""

    name: str
    crop: Crop | None
    seconds: float
    error: str | None


def classify_images(
    sources: Iterable[ImageInput],
    model: Model,
    runtime: Runtime,
    *,
    top_k: int,
    batch_size: int,
    workers: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[ClassificationResult]:
    """Yield an outcome for each source, in order; what cannot be read or decoded becomes an error of its own.

    Decodes in `workers` threads, two batches ahead of the device at most, so memory does not grow with the
    number of sources. A batch that does not fit the device is halved, and so are those after it; `say` is
    told. Raises DeviceError.
    """
    classifier = Classifier(model, runtime, top_k, batch_size, on_message)
    ahead = 2 * batch_size + workers
    yield from classifier.run_all(decode_all(sources, model.preprocessing, workers, ahead, max_pixels))


def decode_all(
    sources: Iterable[ImageInput],
    preprocessing: Preprocessing,
    workers: int,
    ahead: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[DecodedImage]:
    """Yield each source decoded, in order, by `workers` threads that are `ahead` images ahead at most."""

    def decode(source: ImageInput) -> DecodedImage:
        try:
            data = source.read()
            started = time.perf_counter()
            crop = decode_image(data, preprocessing, max_pixels)
        except ServiceError as error:
            return DecodedImage(source.name, None, 0.0, str(error))
        return DecodedImage(source.name, crop, time.perf_counter() - started, None)

    pool = ThreadPoolExecutor(workers, "decode")
    begun: deque[Future[DecodedImage]] = deque()
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
    """Puts batches of decoded images through a model.

    A batch that does not fit the device is halved, and `batch_size` with it; `say` is told.
    """

    def __init__(
        self,
        model: Model,
        runtime: Runtime,
        top_k: int,
        batch_size: int,
        on_message: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.batch_size = batch_size
        self._model = model
        self._runtime = runtime
        self._top_k = top_k
        self._on_message = on_message

    def run_all(self, images: Iterable[DecodedImage]) -> Iterator[ClassificationResult]:
        """Yield an outcome for each image, in order, in batches; raises DeviceError."""
        for batch in _batches(images, self):
            yield from self._run(batch)

    def _run(self, batch: Sequence[DecodedImage]) -> Iterator[ClassificationResult]:
        crops = [image.crop for image in batch if image.crop is not None]
        best, each_ms, full = None, 0.0, ""
        try:
            started = time.perf_counter()
            best = self._runtime.run(crops, self._top_k) if crops else None
            each_ms = (time.perf_counter() - started) * 1e3 / max(1, len(crops))
        except DeviceOutOfMemoryError as error:
            full = str(error)
        # Not in the except block, where the exception still holds what has filled the device.
        if full and len(crops) == 1:
            yield from (_failed(image, f"{full}, even for one image") for image in batch)
            return
        if full:
            self.batch_size = max(1, min(self.batch_size, len(crops)) // 2)
            self._on_message(f"{full} at {len(crops)} images; going on with {self.batch_size}")
            yield from self.run_all(batch)
            return
        rows = iter(()) if best is None else zip(best.class_ids, best.probabilities, strict=True)
        for image in batch:
            if image.crop is None:
                yield ClassificationResult(image.name, error=image.error)
                continue
            try:
                ids, probabilities = next(rows)
                validate_probabilities(probabilities)
            except InferenceError as error:
                yield _failed(image, str(error))
            else:
                ranking = self._model.rank(ids, probabilities)
                yield ClassificationResult(image.name, ranking, image.seconds * 1e3, each_ms)


def _batches(images: Iterable[DecodedImage], classifier: Classifier) -> Iterator[list[DecodedImage]]:
    """Gather as many images that could be decoded as fit, with those between them that could not."""
    batch: list[DecodedImage] = []
    sound = 0
    for image in images:
        batch.append(image)
        sound += image.crop is not None
        if sound >= classifier.batch_size:
            yield batch
            batch, sound = [], 0
    if batch:
        yield batch


def _failed(image: DecodedImage, reason: str) -> ClassificationResult:
    return ClassificationResult(image.name, error=image.error or reason)
