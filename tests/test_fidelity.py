"""Equal answers: on thousands of real pictures the fast ways give what the plain ones do."""

import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.models import ResNet50_Weights
from torchvision.transforms.v2 import functional

from service import hardware, images, models
from service.models import Model
from service.quantisation import calibration, quantise
from service.runtimes.selection import open_runtimes
from service.training import data
from service.training.evaluation import evaluate
from tests.test_images import difference, transformed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(real_pictures: Path) -> list[bytes]:
    """Imagenette's 3,925 validation photographs."""
    archive = real_pictures / "imagenette-val.tar"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    with tarfile.open(archive) as file:
        members = (member for member in file if member.name.endswith(".JPEG"))
        return [part.read() for member in members if (part := file.extractfile(member))]


@pytest.fixture(scope="module")
def model() -> Model:
    return models.load("bundled")


@pytest.fixture(scope="module")
def test_set(real_pictures: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> data.Dataset:
    """CIFAR-10's 10,000 test pictures."""
    archive = real_pictures / "cifar10-test.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    folder = tmp_path_factory.mktemp("cifar")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return data.load_test(str(folder), model.labels, model.preprocessing)


def test_crops_equal_the_published_transforms(photographs: list[bytes]) -> None:
    """Decoding and resizing differ from torchvision's transforms by far less than a grey level."""
    weights = ResNet50_Weights.DEFAULT.transforms()
    preprocessing = images.Preprocessing(weights.resize_size[0], weights.crop_size[0], (0, 0, 0), (1, 1, 1))
    differences = [
        difference(images.decode(picture, preprocessing), transformed(picture, weights))
        for picture in photographs
    ]
    assert len(differences) == 3925
    assert np.mean(differences) < 0.02
    assert max(differences) < 1


def test_the_fastest_runtime_agrees_with_the_plain_network(model: Model, photographs: list[bytes]) -> None:
    """What auto chooses has eager fp32's top-1 for 99.5 % of the photographs, and its probabilities."""
    [runtime] = open_runtimes(model, [CPU], instances=1)
    crops = [images.decode(picture, model.preprocessing) for picture in photographs]
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


def eager(model: Model, crops: list[images.Crop]) -> npt.NDArray[np.float32]:
    """Return what the network, as it was loaded, makes of the crops: probabilities [N, classes]."""
    pictures = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    normalised = functional.normalize(pictures, list(model.preprocessing.mean), list(model.preprocessing.std))
    with torch.inference_mode():
        probabilities: npt.NDArray[np.float32] = model.network(normalised).softmax(1).numpy()
    return probabilities


def test_fast_precisions_cost_no_accuracy(model: Model, test_set: data.Dataset, tmp_path: Path) -> None:
    """On CIFAR-10's test pictures bf16 loses at most 0.1 points of fp32's accuracy, and int8 at most 0.3."""
    pytest.importorskip("nncf", reason="needs the extra quantize")
    for index in range(300):
        picture = test_set.pictures[index * len(test_set) // 300]
        functional.to_pil_image(picture).save(tmp_path / f"{index}.png")
    quantised = quantise(model, calibration(tmp_path, model).pictures.permute(0, 2, 3, 1).numpy()).model

    def accuracy(candidate: Model, precision: hardware.Precision) -> float:
        [runtime] = open_runtimes(candidate, [CPU], precision=precision, instances=1)
        return 100 * evaluate(candidate, runtime, test_set).accuracy

    full = accuracy(model, "fp32")
    assert accuracy(model, hardware.choose_precision(CPU)) > full - 0.1
    assert accuracy(quantised, "int8") > full - 0.3
