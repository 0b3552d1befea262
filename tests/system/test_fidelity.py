"""Fidelity: on thousands of real images, fast decoding, runtimes and precisions equal the reference."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights, ViT_H_14_Weights
from torchvision.transforms.v2 import functional

from resnet_service.devices import Precision, choose_precision
from resnet_service.images import Crop, Preprocessing, decode_image
from resnet_service.models import Model, load_model
from resnet_service.runtimes.quantization import quantize
from resnet_service.runtimes.selection import create_runtimes
from resnet_service.training import data
from resnet_service.training.evaluate import evaluate
from tests.support.images import difference, encode, transformed
from tests.support.runtimes import CPU, probabilities


@pytest.fixture(scope="module")
def photographs(real_images: Path) -> list[bytes]:
    """Return the 3,925 validation photographs of Imagenette."""
    archive = real_images / "imagenette-val.tar"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    with tarfile.open(archive) as file:
        members = (member for member in file if member.name.endswith(".JPEG"))
        return [part.read() for member in members if (part := file.extractfile(member))]


@pytest.fixture(scope="module")
def model() -> Model:
    """Return the model cifar10."""
    return load_model("cifar10")


@pytest.fixture(scope="module")
def test_set(real_images: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> data.Dataset:
    """Return the 10,000 test images of CIFAR-10."""
    archive = real_images / "cifar10-test.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    folder = tmp_path_factory.mktemp("cifar")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return data.load_test_dataset(str(folder), model.labels, model.preprocessing)


def preprocessing_of(transform: Any) -> Preprocessing:
    """Return the preprocessing of a torchvision transform, without normalization."""
    return Preprocessing(
        transform.resize_size[0], transform.crop_size[0], (0, 0, 0), (1, 1, 1), transform.interpolation.value
    )


@pytest.mark.parametrize(
    ("size", "resize"),
    [((1536, 1200), 203), ((1536, 1200), 101), ((4032, 3024), 256)],
    ids=["half scale", "quarter scale", "phone"],
)
def test_decoding_at_reduced_scale_equals_full_decoding(
    size: tuple[int, int], resize: int, real_images: Path
) -> None:
    """At the sizes where reduced scales begin, the crop of a photograph differs by under 0.3 gray levels."""
    with Image.open(real_images / "dog.jpg") as photograph:
        resized = photograph if size[0] > photograph.width else photograph.crop((0, 0, *size))
        jpeg = encode(resized.resize(size), quality=92)
    preprocessing = Preprocessing(resize, resize * 7 // 8, (0, 0, 0), (1, 1, 1))
    with Image.open(io.BytesIO(jpeg)) as full:
        expected = preprocessing.resize_and_crop(np.array(full))
    assert difference(decode_image(jpeg, preprocessing), expected) < 0.3


@pytest.mark.parametrize("weights", [ResNet50_Weights.IMAGENET1K_V1, ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1])
def test_sample_crops_equal_the_published_transforms(weights: Any, real_images: Path) -> None:
    """On ImageNet photographs a crop is within 1 gray level of torchvision's, bilinear and bicubic."""
    transform = weights.transforms()
    paths = [*sorted((real_images / "imagenet-sample").glob("*.JPEG")), real_images / "dog.jpg"]
    images = [path.read_bytes() for path in paths]
    differences = [
        difference(decode_image(image, preprocessing_of(transform)), transformed(image, transform))
        for image in images
    ]
    assert max(differences) < 0.5
    assert np.mean(differences) < 0.02


@pytest.mark.parametrize("size", [128, 64])
def test_crop_of_a_large_jpeg_equals_the_published_transforms(size: int, dog: bytes) -> None:
    """Decoded at a half or a quarter of its size, a photograph of 1213 pixels is within 1 gray level."""
    transform = ResNet50_Weights.IMAGENET1K_V1.transforms(resize_size=size, crop_size=size)
    assert difference(decode_image(dog, preprocessing_of(transform)), transformed(dog, transform)) < 1


def test_imagenette_crops_equal_the_published_transforms(photographs: list[bytes]) -> None:
    """Decoding and resizing differ from torchvision's transforms by far less than a gray level."""
    transform = ResNet50_Weights.DEFAULT.transforms()
    differences = [
        difference(decode_image(image, preprocessing_of(transform)), transformed(image, transform))
        for image in photographs
    ]
    assert len(differences) == 3925
    assert np.mean(differences) < 0.02
    assert max(differences) < 1


def test_cifar10_classifies_a_photograph_of_a_dog(model: Model, dog: bytes) -> None:
    """The best class of the photograph in PyTorch's tutorials is correct."""
    best = predict_eager(model, [decode_image(dog, model.preprocessing)]).argmax()
    assert model.labels[best] == "dog"


def test_fastest_runtime_agrees_with_the_network(model: Model, photographs: list[bytes]) -> None:
    """Auto has the best class of eager fp32 for 99.5 % of the photographs, and similar probabilities."""
    [runtime] = create_runtimes(model, [CPU], streams_per_device=1)
    crops = [decode_image(image, model.preprocessing) for image in photographs]
    agreements, differences = 0, []
    for start in range(0, len(crops), 64):
        batch = crops[start : start + 64]
        fast = probabilities(runtime, batch).numpy()
        expected = predict_eager(model, batch)
        agreements += int((fast.argmax(1) == expected.argmax(1)).sum())
        differences += np.abs(fast - expected).max(1).tolist()
    assert agreements / len(crops) >= 0.995
    assert np.quantile(differences, 0.999) < 0.04  # eight bits of mantissa through 18 layers


def predict_eager(model: Model, crops: list[Crop]) -> npt.NDArray[np.float32]:
    """Return the probabilities [N, classes] of the unmodified network in fp32."""
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    normalized = functional.normalize(images, list(model.preprocessing.mean), list(model.preprocessing.std))
    with torch.inference_mode():
        result: npt.NDArray[np.float32] = model.network(normalized).softmax(1).numpy()
    return result


def test_fast_precisions_keep_the_accuracy(model: Model, test_set: data.Dataset, tmp_path: Path) -> None:
    """On CIFAR-10's test images bf16 loses at most 0.1 points of fp32's accuracy, and int8 at most 0.3."""
    pytest.importorskip("nncf", reason="requires the extra quantize")
    for index in range(300):
        image = test_set.images[index * len(test_set) // 300]
        functional.to_pil_image(image).save(tmp_path / f"{index}.png")
    calibration = data.load_calibration_images(tmp_path, model.preprocessing)
    quantized = quantize(model, calibration.images.permute(0, 2, 3, 1).numpy()).model

    def accuracy(candidate: Model, precision: Precision) -> float:
        [runtime] = create_runtimes(candidate, [CPU], precision=precision, streams_per_device=1)
        return 100 * evaluate(candidate, runtime, test_set).accuracy

    fp32 = accuracy(model, "fp32")
    assert accuracy(model, choose_precision(CPU)) > fp32 - 0.1
    assert accuracy(quantized, "int8") > fp32 - 0.3
