"""Equal answers: on thousands of real images the fast ways give what the plain ones do."""

import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.models import ResNet50_Weights
from torchvision.transforms.v2 import functional

from resnet_service.devices import Precision, choose_precision
from resnet_service.images import Crop, Preprocessing, decode_image
from resnet_service.models import Model, load_model
from resnet_service.runtimes.quantization import load_calibration_images, quantize
from resnet_service.runtimes.selection import create_runtimes
from resnet_service.training import data
from resnet_service.training.evaluate import evaluate
from tests.support.images import difference, transformed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(real_images: Path) -> list[bytes]:
    """Imagenette's 3,925 validation photographs."""
    archive = real_images / "imagenette-val.tar"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    with tarfile.open(archive) as file:
        members = (member for member in file if member.name.endswith(".JPEG"))
        return [part.read() for member in members if (part := file.extractfile(member))]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("bundled")


@pytest.fixture(scope="module")
def test_set(real_images: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> data.Dataset:
    """CIFAR-10's 10,000 test images."""
    archive = real_images / "cifar10-test.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    folder = tmp_path_factory.mktemp("cifar")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return data.load_test_dataset(str(folder), model.labels, model.preprocessing)


def test_crops_equal_the_published_transforms(photographs: list[bytes]) -> None:
    """Decoding and resizing differ from torchvision's transforms by far less than a gray level."""
    weights = ResNet50_Weights.DEFAULT.transforms()
    preprocessing = Preprocessing(weights.resize_size[0], weights.crop_size[0], (0, 0, 0), (1, 1, 1))
    differences = [
        difference(decode_image(image, preprocessing), transformed(image, weights)) for image in photographs
    ]
    assert len(differences) == 3925
    assert np.mean(differences) < 0.02
    assert max(differences) < 1


def test_the_fastest_runtime_agrees_with_the_plain_network(model: Model, photographs: list[bytes]) -> None:
    """What auto chooses has eager fp32's top-1 for 99.5 % of the photographs, and its probabilities."""
    [runtime] = create_runtimes(model, [CPU], streams_per_device=1)
    crops = [decode_image(image, model.preprocessing) for image in photographs]
    agreed, furthest = 0, []
    for start in range(0, len(crops), 64):
        some = crops[start : start + 64]
        best = runtime.run(some, 10)
        fast = np.zeros_like(best.probabilities)
        np.put_along_axis(fast, best.class_ids, best.probabilities, 1)
        plain = eager(model, some)
        agreed += int((fast.argmax(1) == plain.argmax(1)).sum())
        furthest += np.abs(fast - plain).max(1).tolist()
    assert agreed / len(crops) >= 0.995
    assert np.quantile(furthest, 0.999) < 0.04  # eight bits of mantissa through 18 layers


def eager(model: Model, crops: list[Crop]) -> npt.NDArray[np.float32]:
    """Return what the network, as it was loaded, makes of the crops: probabilities [N, classes]."""
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    normalized = functional.normalize(images, list(model.preprocessing.mean), list(model.preprocessing.std))
    with torch.inference_mode():
        probabilities: npt.NDArray[np.float32] = model.network(normalized).softmax(1).numpy()
    return probabilities


def test_fast_precisions_cost_no_accuracy(model: Model, test_set: data.Dataset, tmp_path: Path) -> None:
    """On CIFAR-10's test images bf16 loses at most 0.1 points of fp32's accuracy, and int8 at most 0.3."""
    pytest.importorskip("nncf", reason="needs the extra quantize")
    for index in range(300):
        image = test_set.images[index * len(test_set) // 300]
        functional.to_pil_image(image).save(tmp_path / f"{index}.png")
    quantized = quantize(
        model, load_calibration_images(tmp_path, model).images.permute(0, 2, 3, 1).numpy()
    ).model

    def accuracy(candidate: Model, precision: Precision) -> float:
        [runtime] = create_runtimes(candidate, [CPU], precision=precision, streams_per_device=1)
        return 100 * evaluate(candidate, runtime, test_set).accuracy

    full = accuracy(model, "fp32")
    assert accuracy(model, choose_precision(CPU)) > full - 0.1
    assert accuracy(quantized, "int8") > full - 0.3
