"""Local classification without a server: batches and memory."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from resnet_service.errors import DeviceOutOfMemoryError
from resnet_service.images import Crop
from resnet_service.inference import (
    ClassificationResult,
    Classifier,
    ImageInput,
    classify_images,
    decode_all,
)
from resnet_service.models import Model, load_model
from resnet_service.runtimes import DeviceMemory, Runtime, TopKResult
from resnet_service.runtimes.selection import create_runtimes
from tests.support.images import encode, make_image


class CountingRuntime:
    """A real runtime that records its batch sizes and has memory for `capacity` images."""

    def __init__(self, runtime: Runtime, capacity: int = 1000) -> None:
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self.embedding_size = runtime.embedding_size
        self._runtime, self._capacity = runtime, capacity
        self.batch_sizes: list[int] = []

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:
        if len(crops) > self._capacity:
            raise DeviceOutOfMemoryError("the device is out of memory")
        self.batch_sizes.append(len(crops))
        return self._runtime.run(crops, k, with_embeddings=with_embeddings)

    def memory(self) -> DeviceMemory | None:
        return None


@pytest.fixture(scope="module")
def cifar10() -> tuple[Model, Runtime]:
    """Return the model cifar10 in fp32, whose results do not depend on the batch size."""
    model = load_model("cifar10")
    [runtime] = create_runtimes(model, [torch.device("cpu")], name="torch", precision="fp32")
    return model, runtime


def image_inputs(count: int) -> list[ImageInput]:
    images = [encode(make_image(seed=number)) for number in range(count)]
    return [ImageInput(str(number), image.__bytes__) for number, image in enumerate(images)]


def classify(
    cifar10: tuple[Model, Runtime], images: Sequence[ImageInput], batch_size: int, capacity: int = 1000
) -> tuple[list[ClassificationResult], list[int], list[str]]:
    """Return the results, the batch sizes and the messages."""
    model, runtime = cifar10
    counting, messages = CountingRuntime(runtime, capacity), list[str]()
    results = classify_images(
        images, model, counting, top_k=3, batch_size=batch_size, workers=2, on_message=messages.append
    )
    return list(results), counting.batch_sizes, messages


def test_batches_have_the_results_of_single_images(cifar10: tuple[Model, Runtime]) -> None:
    """Ten images in batches of four are three forward passes with the results of ten."""
    batched, batch_sizes, _ = classify(cifar10, image_inputs(10), 4)
    single, ones, _ = classify(cifar10, image_inputs(10), 1)
    assert (batch_sizes, ones) == ([4, 4, 2], [1] * 10)
    for result, expected in zip(batched, single, strict=True):
        for prediction, reference in zip(result.ranking, expected.ranking, strict=True):
            assert prediction.label == reference.label
            assert prediction.probability == pytest.approx(reference.probability, abs=1e-3)


def test_out_of_memory_halves_the_batch_size(cifar10: tuple[Model, Runtime]) -> None:
    """With memory for three images, batches of eight become batches of two and every image has a result."""
    results, batch_sizes, messages = classify(cifar10, image_inputs(17), 8, capacity=3)
    assert [result.name for result in results] == [str(number) for number in range(17)]
    assert all(result.ranking for result in results)
    assert set(batch_sizes) <= {1, 2}
    assert len(messages) == 2
    assert "continuing with batches of 4" in messages[0]
    assert "continuing with batches of 2" in messages[1]


def test_out_of_memory_for_one_image_is_its_error(cifar10: tuple[Model, Runtime]) -> None:
    """If not even one image fits, each result has an error."""
    results, _, _ = classify(cifar10, image_inputs(2), 2, capacity=0)
    assert all("memory" in str(result.error) for result in results)


def test_classifier_keeps_the_halved_batch_size(cifar10: tuple[Model, Runtime]) -> None:
    """Several calls of one classifier, as in a Ray actor, halve the batch size once."""
    model, runtime = cifar10
    counting, messages = CountingRuntime(runtime, capacity=4), list[str]()
    classifier = Classifier(model, counting, 1, 8, messages.append)
    for _ in range(3):
        decoded = decode_all(image_inputs(8), model.preprocessing, workers=1, ahead=8)
        assert len([result for result in classifier.run_all(decoded) if result.ranking]) == 8
    assert counting.batch_sizes == [4] * 6
    assert len(messages) == 1


def test_inputs_are_read_a_few_batches_ahead(cifar10: tuple[Model, Runtime]) -> None:
    """Memory use does not grow with the number of images: an endless source is read only as far as needed."""
    reads = 0

    def endless() -> Iterator[ImageInput]:
        def read() -> bytes:
            nonlocal reads
            reads += 1
            return encode(make_image())

        while True:
            yield ImageInput("endless", read)

    model, runtime = cifar10
    results = classify_images(endless(), model, runtime, top_k=1, batch_size=4, workers=2)
    for _ in range(20):
        next(results)
    assert reads <= 20 + 4 * 4
    del results
