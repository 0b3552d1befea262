"""Classify local images in batches, decoding them in threads while the device computes."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from resnet_service.errors import (
    DeviceOutOfMemoryError,
    InferenceError,
    ServiceError,
    UnsupportedModelError,
)
from resnet_service.images import DEFAULT_MAX_PIXELS, Crop, Preprocessing, decode_image
from resnet_service.inference.inputs import ImageInput
from resnet_service.models import Model
from resnet_service.runtimes import Runtime
from resnet_service.schemas import Prediction


@dataclass(frozen=True)
class ClassificationResult:
    """The best classes of one image, best first, or the error that prevented a result.

    `decode_ms` is the time to decode the image and `device_ms` its share of the time of its batch, both in
    milliseconds and 0 if there is an error. `embedding` is [D], if it was requested.
    """

    name: str
    ranking: tuple[Prediction, ...] = ()
    decode_ms: float = 0.0
    device_ms: float = 0.0
    error: str | None = None
    embedding: npt.NDArray[np.float32] | None = None


class DecodedImage(NamedTuple):
    """A decoded image: its crop and the seconds to decode it, or the error that prevented it."""

    name: str
    crop: Crop | None
    seconds: float
    error: str | None


def classify_images(
    inputs: Iterable[ImageInput],
    model: Model,
    runtime: Runtime,
    *,
    top_k: int,
    batch_size: int,
    workers: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_message: Callable[[str], None] = lambda _: None,
    with_embeddings: bool = False,
) -> Iterator[ClassificationResult]:
    """Yield a result for each input, in order; an image that cannot be read or decoded has an error.

    `workers` threads decode at most two batches ahead of the device, so memory use does not grow with the
    number of inputs. If a batch does not fit the device, it and all later ones are halved, and `on_message`
    is called. Raises DeviceError, and UnsupportedModelError if `with_embeddings` is set and the model has
    none.
    """
    classifier = Classifier(model, runtime, top_k, batch_size, on_message, with_embeddings=with_embeddings)
    ahead = 2 * batch_size + workers
    yield from classifier.run_all(decode_all(inputs, model.preprocessing, workers, ahead, max_pixels))


def decode_all(
    inputs: Iterable[ImageInput],
    preprocessing: Preprocessing,
    workers: int,
    ahead: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[DecodedImage]:
    """Yield each input decoded, in order; `workers` threads decode at most `ahead` images in advance."""

    def decode(image: ImageInput) -> DecodedImage:
        try:
            data = image.read()
            started = time.perf_counter()
            crop = decode_image(data, preprocessing, max_pixels)
        except ServiceError as error:
            return DecodedImage(image.name, None, 0.0, str(error))
        return DecodedImage(image.name, crop, time.perf_counter() - started, None)

    pool = ThreadPoolExecutor(workers, "decode")
    pending: deque[Future[DecodedImage]] = deque()
    try:
        for image in inputs:
            pending.append(pool.submit(decode, image))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Classifier:
    """Runs a model on batches of decoded images; `with_embeddings` adds the embeddings to the results.

    If a batch does not fit the device, it and `batch_size` are halved, and `on_message` is called.
    """

    def __init__(
        self,
        model: Model,
        runtime: Runtime,
        top_k: int,
        batch_size: int,
        on_message: Callable[[str], None] = lambda _: None,
        *,
        with_embeddings: bool = False,
    ) -> None:
        """Create a classifier. Raises UnsupportedModelError if the model lacks the embeddings requested."""
        if with_embeddings and runtime.embedding_size is None:
            raise UnsupportedModelError(
                f"the model {model.name!r} has no embedding: its last layer is not a linear one"
            )
        self.batch_size = batch_size
        self._with_embeddings = with_embeddings
        self._model = model
        self._runtime = runtime
        self._top_k = top_k
        self._on_message = on_message

    def run_all(self, images: Iterable[DecodedImage]) -> Iterator[ClassificationResult]:
        """Yield a result for each image, in order. Raises DeviceError."""
        for batch in _batches(images, self):
            yield from self._run(batch)

    def _run(self, batch: Sequence[DecodedImage]) -> Iterator[ClassificationResult]:
        crops = [image.crop for image in batch if image.crop is not None]
        best, device_ms, out_of_memory = None, 0.0, ""
        try:
            started = time.perf_counter()
            if crops:
                best = self._runtime.run(crops, self._top_k, with_embeddings=self._with_embeddings)
            device_ms = (time.perf_counter() - started) * 1e3 / max(1, len(crops))
        except DeviceOutOfMemoryError as error:
            out_of_memory = str(error)
        # Outside the except block, in which the exception still refers to the tensors that filled the device.
        if out_of_memory and len(crops) == 1:
            yield from (_failed(image, f"{out_of_memory}, even for one image") for image in batch)
            return
        if out_of_memory:
            self.batch_size = max(1, min(self.batch_size, len(crops)) // 2)
            self._on_message(
                f"{out_of_memory} at {len(crops)} images; continuing with batches of {self.batch_size}"
            )
            yield from self.run_all(batch)
            return
        results = iter([] if best is None else best.images())
        for image in batch:
            if image.crop is None:
                yield ClassificationResult(image.name, error=image.error)
                continue
            try:
                result = next(results).top(self._top_k)
            except InferenceError as error:
                yield _failed(image, str(error))
            else:
                ranking = result.predictions(self._model.labels)
                yield ClassificationResult(
                    image.name, ranking, image.seconds * 1e3, device_ms, embedding=result.embedding
                )


def _batches(images: Iterable[DecodedImage], classifier: Classifier) -> Iterator[list[DecodedImage]]:
    """Group images into batches of `batch_size` decoded ones; images with errors keep their position."""
    batch: list[DecodedImage] = []
    decoded = 0
    for image in images:
        batch.append(image)
        decoded += image.crop is not None
        if decoded >= classifier.batch_size:
            yield batch
            batch, decoded = [], 0
    if batch:
        yield batch


def _failed(image: DecodedImage, reason: str) -> ClassificationResult:
    return ClassificationResult(image.name, error=image.error or reason)
