"""Training data: folders of classes, the split into training and test images, and CIFAR-10."""

import hashlib
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from resnet_service.errors import TrainingError
from resnet_service.images import Preprocessing
from resnet_service.training import data as training_data
from resnet_service.training.data import TrainTestData, load_dataset, load_test_dataset
from resnet_service.training.trainer import Normalize
from tests.support.file_server import FileServer
from tests.support.training import write_images

PREPROCESSING = Preprocessing(32, 32, (0, 0, 0), (1, 1, 1))
BROKEN_PNG = b"\x89PNG\r\n\x1a\nbroken"


def load(source: Path | str, *, test_share: float = 0.2) -> TrainTestData:
    return load_dataset(str(source), PREPROCESSING, test_share=test_share)


def sizes(data: TrainTestData) -> tuple[int, int]:
    return len(data.train), len(data.test)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with 8 training and 3 test images for each of two classes."""
    write_images(tmp_path / "data" / "train", 8)
    write_images(tmp_path / "data" / "test", 3)
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["test", "val"])
def test_folder_with_test_images_is_not_split(images: Path, name: str) -> None:
    """The test images are those in test/ or val/."""
    if name != "test":
        (images / "test").rename(images / name)
    data = load(images)
    assert sizes(data) == (16, 6)
    assert data.labels == ("dark", "light")
    assert data.test_share is None


@pytest.mark.parametrize("parts", [(), ("train",)])
def test_folder_without_test_images_is_split_identically_each_time(
    tmp_path: Path, parts: Sequence[str]
) -> None:
    """A fifth of each class is for testing, and evaluation with the same share selects the same images."""
    write_images(tmp_path.joinpath("data", *parts), 10)
    first, second = load(tmp_path / "data"), load(tmp_path / "data")
    assert sizes(first) == (16, 4)
    assert first.digest() == second.digest()
    assert first.test_share == 0.2
    for share, count in ((0.2, 4), (1.0, 20)):
        source = str(tmp_path / "data")
        test_set = load_test_dataset(source, ("dark", "light"), PREPROCESSING, test_share=share)
        assert len(test_set) == count
        assert share == 1 or torch.equal(test_set.images, first.test.images)


def test_images_that_need_much_memory_are_stored_in_a_file(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If they need more than half of the free memory, they are equal but in a memory-mapped file."""
    in_memory = load(images)
    monkeypatch.setattr(training_data, "available_memory", lambda: 1000)
    memmap = Mock(wraps=np.memmap)
    monkeypatch.setattr(np, "memmap", memmap)
    assert load(images).digest() == in_memory.digest()
    assert memmap.call_count == 2  # training and test images


def test_hidden_and_system_files_are_ignored(images: Path) -> None:
    """.DS_Store, Thumbs.db and hidden folders are neither classes nor images."""
    (images / "train" / ".ipynb_checkpoints").mkdir()
    for name in (".DS_Store", "Thumbs.db", ".hidden/a.png"):
        (images / "train" / "dark" / name).parent.mkdir(exist_ok=True)
        (images / "train" / "dark" / name).write_bytes(b"not an image")
    data = load(images)
    assert data.train.unreadable == data.test.unreadable == {}
    assert sizes(data) == (16, 6)


def test_unreadable_images_are_skipped_with_their_reason(images: Path) -> None:
    (images / "train" / "dark" / "0.png").write_bytes(BROKEN_PNG)
    (images / "test" / "light" / "notes.txt").write_text("not an image")
    data = load(images)
    assert sizes(data) == (15, 6)
    [(path, reason)] = data.train.unreadable.items()
    assert (Path(path).name, bool(reason)) == ("0.png", True)
    assert [Path(path).name for path in data.test.unreadable] == ["notes.txt"]


def test_class_without_a_readable_image_is_an_error(images: Path) -> None:
    for path in (images / "train" / "dark").iterdir():
        path.write_bytes(BROKEN_PNG)
    with pytest.raises(TrainingError, match=r"no image of the class 'dark' is readable; .*\.png"):
        load(images)


def test_class_name_that_is_not_utf8_is_an_error(images: Path) -> None:
    """JSON and safetensors cannot hold such a name."""
    (images / "train" / "light").rename(images / "train" / os.fsdecode(b"caf\xe9"))
    with pytest.raises(TrainingError, match="not UTF-8"):
        load(images)


def test_images_of_one_color_can_be_normalized(tmp_path: Path) -> None:
    """The standard deviation of a constant channel is replaced by a small positive number."""
    for label, color in (("a", (10, 20, 7)), ("b", (200, 90, 7))):
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.new("RGB", (32, 32), color).save(tmp_path / label / f"{number}.png")
    train_set = load(tmp_path).train
    mean, std = train_set.channel_statistics()
    assert mean[2] == pytest.approx(7 / 255, abs=1e-4)
    assert std[2] > 0
    assert Normalize(mean, std)(train_set.images).isfinite().all()


def test_test_folders_are_named_after_labels_in_any_spelling(tmp_path: Path) -> None:
    """The targets are indices of the labels; a name that fits two classes is an error."""
    write_images(tmp_path, 2)
    labels = ("other", "LIGHT", "Dark")
    assert load_test_dataset(str(tmp_path), labels, PREPROCESSING).targets.tolist() == [2, 2, 1, 1]
    with pytest.raises(TrainingError, match="dark is named after 2 classes"):
        load_test_dataset(str(tmp_path), ("Dark", "light", "DARK"), PREPROCESSING)


def test_unusable_folders_are_errors_with_their_name(images: Path) -> None:
    """A missing folder, an empty class, an unknown test class, one class only, no training images."""

    def message(source: Path | str) -> str:
        with pytest.raises(TrainingError) as error:
            load(source)
        return str(error.value)

    assert "nowhere does not exist" in message(images / "nowhere")
    assert "cannot be read" in message(300 * "x")
    (images / "train" / "empty").mkdir()
    assert "train/empty contains no images" in message(images)
    (images / "train" / "empty").rmdir()
    shutil.copytree(images / "test" / "dark", images / "test" / "third")
    assert "unknown classes: third" in message(images)
    shutil.rmtree(images / "train" / "dark")
    assert "at least two class folders, but has only 'light'" in message(images)
    shutil.rmtree(images / "train")
    assert "no train/" in message(images)


@pytest.fixture
def cifar10_server(file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """Serve a CIFAR-10 archive with 100 training and 20 test images, and use it in torchvision."""
    random = np.random.default_rng(0)

    def batch(count: int) -> bytes:
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        return pickle.dumps({"data": pixels, "labels": [number % 10 for number in range(count)]})

    files = {f"data_batch_{number}": batch(20) for number in range(1, 6)} | {"test_batch": batch(20)}
    files["batches.meta"] = pickle.dumps({"label_names": [f"class{number}" for number in range(10)]})
    with tarfile.open(file_server.folder / "small.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    hashes = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    archive_hash = hashlib.md5((file_server.folder / "small.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(CIFAR10, "url", f"{file_server.url}/small.tar.gz")
    monkeypatch.setattr(CIFAR10, "filename", "small.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", archive_hash)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, hashes[name]] for name in files if "data_" in name])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashes["test_batch"]]])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": hashes["batches.meta"]}
    )
    return file_server


def test_cifar10_is_downloaded_once(cifar10_server: FileServer) -> None:
    """A second run uses the cache, images are resized as needed, and evaluation uses the test images."""
    data = load("cifar10")
    assert sizes(data) == (100, 20)
    downloads = len(cifar10_server.requests)
    assert downloads > 0
    larger = load_dataset("cifar10", Preprocessing(40, 40, (0, 0, 0), (1, 1, 1)))
    assert larger.train.images.shape == (100, 3, 40, 40)
    assert torch.equal(load_test_dataset("cifar10", data.labels, PREPROCESSING).images, data.test.images)
    assert len(cifar10_server.requests) == downloads
    with pytest.raises(TrainingError, match="not those of CIFAR-10"):
        load_test_dataset("cifar10", ("dark", "light"), PREPROCESSING)


def test_failed_download_of_cifar10_names_the_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(TrainingError, match="train/CLASS"):
        load("cifar10")
