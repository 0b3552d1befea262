"""Fidelity of efficientnet_lite0 on photographs of ImageNet: decoding, bf16 and int8 keep the accuracy.

docs/performance.md has the accuracies on all 3,925 photographs.
"""

import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from resnet_service.cli import main
from resnet_service.devices import Precision
from resnet_service.machine import has_native_bf16
from resnet_service.models import Model, load_model
from resnet_service.runtimes.quantization import quantize
from resnet_service.training.data import Dataset, load_calibration_images, load_test_dataset
from resnet_service.training.image_folder import index_test_folder
from tests.support.runtimes import create_runtime

pytest.importorskip("openvino", reason="requires the extra openvino")

IMAGES_PER_CLASS = 100
IMAGES = 10 * IMAGES_PER_CLASS
"""0.3 points are 3 images; more of them would take minutes."""

BATCH_SIZE = 32

Classes = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def imagenette(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 100 validation photographs of each of ImageNet's classes in Imagenette."""
    archive = real_images / "imagenette-val.tar"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    folder = tmp_path_factory.mktemp("imagenette")
    with tarfile.open(archive) as file:
        classes: dict[str, list[tarfile.TarInfo]] = defaultdict(list)
        for member in file:
            if member.isfile():
                classes[Path(member.name).parent.name].append(member)
        for members in classes.values():
            for index in range(IMAGES_PER_CLASS):  # evenly spaced
                file.extract(members[index * len(members) // IMAGES_PER_CLASS], folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("efficientnet_lite0")


@pytest.fixture(scope="module")
def dataset(imagenette: Path, model: Model) -> Dataset:
    """Return the photographs as the service decodes them, with their class among all 1,000."""
    result = load_test_dataset(str(imagenette), model.labels, model.preprocessing)
    assert len(result) == IMAGES
    assert not result.unreadable
    return result


@pytest.fixture(scope="module")
def fp32(model: Model, dataset: Dataset) -> Classes:
    """Return the best class of each photograph in fp32."""
    return classify(model, "fp32", dataset.images)


def classify(model: Model, precision: Precision, images: Tensor) -> Classes:
    """Return the best class of each image, int64 [N]; `images` are uint8 [N, 3, S, S]."""
    runtime = create_runtime(model, "openvino", precision)
    parts = images.permute(0, 2, 3, 1).split(BATCH_SIZE)
    return np.concatenate([runtime.run(list(part.numpy()), 1).class_ids[:, 0] for part in parts])


def lost_points(classes: Classes, reference: Classes, dataset: Dataset) -> float:
    """Return how many percentage points the accuracy of `classes` is below that of `reference`."""
    targets = dataset.targets.numpy()
    return 100 * float((reference == targets).mean() - (classes == targets).mean())


def different(classes: Classes, reference: Classes) -> float:
    """Return the share of photographs, 0..1, that have another best class."""
    return float((classes != reference).mean())


def test_evaluate_names_accuracy_and_confusions_of_imagenette(imagenette: Path) -> None:
    """Folders named by WordNet id, ten of 1,000 classes: the accuracies are near those of the whole set."""
    command = ["evaluate", "--model", "efficientnet_lite0", "--data", str(imagenette), "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["images"] == IMAGES
    assert content["accuracy"] == pytest.approx(0.746, abs=0.03)
    assert content["top5_accuracy"] == pytest.approx(0.941, abs=0.02)
    assert len(content["accuracy_by_class"]) == 10
    assert content["accuracy_by_class"].keys() >= {"tench", "French horn", "parachute"}
    counts = [confusion["count"] for confusion in content["confusions"]]
    assert len(counts) == 10
    assert counts == sorted(counts, reverse=True)


def test_decoding_keeps_the_accuracy_of_the_published_transforms(
    imagenette: Path, model: Model, dataset: Dataset, fp32: Classes
) -> None:
    """Pillow and torchvision's transforms are at most 0.3 points better, and 1 % of the classes differ."""
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(256, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(224),
        ]
    )
    crops = []
    for path, _ in index_test_folder(imagenette, model.labels).images:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            crops.append(transform(image.convert("RGB")))
    published = classify(model, "fp32", torch.stack(crops))
    assert lost_points(fp32, published, dataset) <= 0.3
    assert different(fp32, published) <= 0.01


def test_bf16_keeps_the_accuracy(model: Model, dataset: Dataset, fp32: Classes) -> None:
    """bf16 loses at most 0.3 points, and at most 3 % of the best classes differ."""
    if not has_native_bf16():
        pytest.skip("needs a CPU with native bf16")
    bf16 = classify(model, "bf16", dataset.images)
    assert lost_points(bf16, fp32, dataset) <= 0.3
    assert different(bf16, fp32) <= 0.03


def test_int8_keeps_the_accuracy(real_images: Path, model: Model, dataset: Dataset, fp32: Classes) -> None:
    """Calibrated on other photographs of ImageNet, int8 loses at most 1 point."""
    pytest.importorskip("nncf", reason="requires the extra quantize")
    samples = real_images / "imagenet-sample"
    if not samples.is_dir():
        pytest.skip(f"needs {samples}")
    calibration = load_calibration_images(samples, model.preprocessing)
    quantized = quantize(model, calibration.images.permute(0, 2, 3, 1).numpy()).model
    int8 = classify(quantized, "int8", dataset.images)
    assert lost_points(int8, fp32, dataset) <= 1
