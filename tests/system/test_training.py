"""Training: images in folders in, a checkpoint that can be served out, whatever happens in between."""

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn
from torchvision import models as torchvision_models
from torchvision.datasets import CIFAR10

from resnet_service.cli import main
from resnet_service.models import checkpoint, load_model
from resnet_service.models.networks import NETWORKS
from resnet_service.training.augmentation import augment, resize
from resnet_service.training.trainer import TrainingConfig
from tests.support.file_server import FileServer
from tests.support.images import encode, make_image


def write_images(folder: Path, count: int) -> None:
    """Write `count` images for each of two classes, which differ in brightness."""
    for label, gain in (("dark", 0.3), ("light", 1.0)):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = make_image(40, 36, seed=number).point(lambda value, gain=gain: value * gain)
            (folder / label / f"{number}.png").write_bytes(encode(image, "PNG"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 32 training and 8 test images of each class."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 32)
    write_images(folder / "test", 8)
    return folder


def arguments(data: Path | str, out: Path, *flags: str) -> list[str]:
    quick = ["--network", "lenet", "--batch-size", "16", "--epochs", "3"]
    return ["train", "--data", str(data), "--out", str(out), *quick, *flags]


def train(data: Path | str, out: Path, *flags: str) -> Result:
    return CliRunner().invoke(main, arguments(data, out, *flags))


def rejected(data: Path | str, out: Path, *flags: str) -> str:
    """Train, which must fail with one message and no epoch, and return the message."""
    result = train(data, out, *flags)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert not list(out.glob("*"))
    return result.output


def log_of(out: Path) -> dict[str, Any]:
    log: dict[str, Any] = json.loads((out / "run_log.json").read_text(encoding="utf-8"))
    return log


def state_of(out: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load_checkpoint(out / "model.safetensors").state)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    result = train(images, out)
    assert result.exit_code == 0, result.output
    return out


def test_what_was_trained_can_be_loaded(finished: Path) -> None:
    """One command makes a checkpoint that knows its classes and its input, and does better than chance."""
    model = load_model(str(finished / "model.safetensors"))
    assert model.name == "mine"
    assert model.labels == ("dark", "light")
    assert model.preprocessing.crop == 32
    assert log_of(finished)["accuracy"] > 0.5


def test_a_run_leaves_its_log_card_and_plots(finished: Path) -> None:
    """The folder holds what there is to know: hardware, options, epochs, accuracy by class, two plots."""
    log = log_of(finished)
    assert [epoch["number"] for epoch in log["epochs"]] == [1, 2, 3]
    assert {"os", "architecture", "processor", "torch"} <= log["hardware"].keys()
    assert log["request"]["options"]["batch_size"] == 16
    assert log["images"] == {"train": 64, "test": 16}
    assert log["accuracy_by_class"].keys() == {"dark", "light"}
    assert np.sum(log["confusion"]) == 16
    assert np.trace(log["confusion"]) / 16 == pytest.approx(log["accuracy"])
    assert log["seconds"] > 0
    card = (finished / "model.md").read_text(encoding="utf-8")
    assert f"{log['accuracy']:.2%}" in card
    assert "| dark |" in card
    for name in ("learning_curve.png", "confusion_matrix.png"):
        with Image.open(finished / name) as image:
            assert min(image.size) > 300
    assert not (finished / "resume.pt").exists()


def test_a_network_overfits_one_batch(tmp_path: Path) -> None:
    """Sixteen images of noise with labels that mean nothing are learnt by heart."""
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(8):
                seed = number + 8 * (label == "b")
                noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                path = tmp_path / "data" / split / label / f"{number}.png"
                Image.fromarray(noise).save(path)
    plain = ["--no-flip", "--shift", "0", "--ema", "0", "--weight-decay", "0", "--max-lr", "0.05"]
    result = train(tmp_path / "data", tmp_path / "out", "--epochs", "60", *plain)
    assert result.exit_code == 0, result.output
    log = log_of(tmp_path / "out")
    assert log["accuracy"] == 1
    assert log["epochs"][-1]["loss"] < 0.1 < log["epochs"][0]["loss"]


def test_a_seed_decides_the_result(images: Path, finished: Path, tmp_path: Path) -> None:
    """A run with the same seed gives the same weights, one with another seed gives others."""
    for seed in ("1", "2"):
        assert train(images, tmp_path / seed, "--seed", seed, "--deterministic").exit_code == 0
    torch.use_deterministic_algorithms(False)
    assert same(state_of(tmp_path / "1"), state_of(finished))
    assert not same(state_of(tmp_path / "2"), state_of(finished))


def test_several_seeds(images: Path, tmp_path: Path) -> None:
    """--seed 1 2 makes a run for each and prints their mean and spread."""
    result = train(images, tmp_path, "--seed", "1", "2", "--epochs", "1")
    assert result.exit_code == 0, result.output
    accuracies = [log_of(tmp_path / f"seed-{seed}")["accuracy"] for seed in (1, 2)]
    assert f"2 seeds: {np.mean(accuracies):.2%} on average" in result.output
    assert f"{np.std(accuracies, ddof=1) * 100:.2f} points" in result.output


# Interruption


def begin(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "resnet_service", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background inherit that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt(process: "subprocess.Popen[str]", epoch: int, number: signal.Signals) -> str:
    """Send a signal once `epoch` has been reported, and return what the process said after it."""
    with process:
        assert process.stderr is not None
        assert any(f"epoch {epoch:3}  " in line for line in process.stderr)
        process.send_signal(number)
        return process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_to_the_same_result(
    images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """After a SIGKILL or SIGINT, --resume ends with the very weights and figures of a whole run."""
    flags = ["--epochs", "40", "--progressive", "--max-lr", "0.02", "--muon-lr", "0.01"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    uninterrupted = train(images, whole, *flags)
    assert uninterrupted.exit_code == 0, uninterrupted.output
    process = begin(arguments(images, parts, *flags))
    said = interrupt(process, 2, number)
    assert not (parts / "model.safetensors").exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "--resume" in said
        assert "Traceback" not in said
    result = train(images, parts, *flags, "--resume")
    assert result.exit_code == 0, result.output
    assert same(state_of(whole), state_of(parts))
    figures = [
        [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in log_of(out)["epochs"]]
        for out in (whole, parts)
    ]
    assert figures[0] == figures[1]
    assert 2 <= log_of(parts)["resumed_after"][0] < 40
    assert {path.name for path in whole.iterdir()} <= {path.name for path in parts.iterdir()}


def test_a_run_under_other_options_does_not_restore(images: Path, finished: Path, tmp_path: Path) -> None:
    """--resume with other options says which differ."""
    shutil.copytree(finished, tmp_path / "out")
    result = train(images, tmp_path / "out", "--resume", "--max-lr", "0.5")
    assert result.exit_code == 1
    assert "max_lr 0.1 there and 0.5 here" in result.output


def test_a_run_on_other_images_does_not_restore(images: Path, tmp_path: Path) -> None:
    """Images that came or went since the interruption are noticed, and so are classes renamed."""
    data = tmp_path / "data"
    shutil.copytree(images, data)
    interrupt(begin(arguments(data, tmp_path / "out", "--epochs", "999")), 1, signal.SIGKILL)

    def go_on() -> str:
        result = train(data, tmp_path / "out", "--epochs", "999", "--resume")
        assert result.exit_code == 1
        return result.output

    for split in ("train", "test"):
        (data / split / "dark").rename(data / split / "murky")
    assert "other images or classes" in go_on()
    for split in ("train", "test"):
        (data / split / "murky").rename(data / split / "dark")
    (data / "test" / "dark" / "0.png").unlink()
    assert "other images or classes" in go_on()


def test_a_finished_run_is_not_done_again(images: Path, finished: Path) -> None:
    """--resume of a finished run reports it; without --resume nothing is written over."""
    before = (finished / "model.safetensors").stat().st_mtime_ns
    assert f"{log_of(finished)['accuracy']:.2%}" in train(images, finished, "--resume").output
    result = train(images, finished)
    assert result.exit_code == 1
    assert "holds a finished run" in result.output
    assert (finished / "model.safetensors").stat().st_mtime_ns == before


def test_a_broken_resume_file(images: Path, tmp_path: Path) -> None:
    """A resume file that is something else is an error with its name."""
    for content in (b"half a file", None):
        if content is None:
            torch.save({}, tmp_path / "resume.pt")
        else:
            (tmp_path / "resume.pt").write_bytes(content)
        result = train(images, tmp_path, "--resume")
        assert result.exit_code == 1
        assert "resume.pt cannot be read" in result.output


def test_two_runs_in_one_folder(images: Path, tmp_path: Path) -> None:
    """While a run is at work in a folder, a second one is rejected."""
    process = begin(arguments(images, tmp_path, "--epochs", "9999"))
    with process:
        assert process.stderr is not None
        assert any("epoch   1  " in line for line in process.stderr)
        result = train(images, tmp_path, "--resume")
        process.kill()
    assert result.exit_code == 1
    assert "another run is at work" in result.output


def test_a_full_disk(images: Path, tmp_path: Path) -> None:
    """A file that the system will not let grow stops the run with a message, and leaves no part of one."""
    limited = subprocess.run(
        [sys.executable, "-m", "resnet_service", *arguments(images, tmp_path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert limited.returncode == 1
    assert "could not be written" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert not list(tmp_path.iterdir())


# Data


def test_one_folder_is_split_the_same_way_every_time(tmp_path: Path) -> None:
    """A folder of classes alone gives a fifth of each class to testing, whatever the seed."""
    write_images(tmp_path / "data", 10)
    logs = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        assert train(tmp_path / "data", out, "--seed", seed, "--epochs", "1").exit_code == 0
        logs.append(log_of(out))
        assert logs[-1]["images"] == {"train": 16, "test": 4}
    command = [
        "evaluate",
        str(tmp_path / "1" / "model.safetensors"),
        "--data",
        str(tmp_path / "data"),
        "--json",
    ]
    for flags, count in (([], 20), (["--test-share", "0.2"], 4)):
        result = json.loads(CliRunner().invoke(main, [*command, *flags]).stdout)
        assert result["images"] == count
    assert result["accuracy"] == pytest.approx(logs[0]["accuracy"])


def test_val_is_a_name_for_test(images: Path, tmp_path: Path) -> None:
    """train/ and val/ are as good as train/ and test/, and train/ alone is split."""
    data = tmp_path / "data"
    shutil.copytree(images, data)
    (data / "test").rename(data / "val")
    assert train(data, tmp_path / "a", "--epochs", "1").exit_code == 0
    assert log_of(tmp_path / "a")["images"] == {"train": 64, "test": 16}
    shutil.rmtree(data / "val")
    assert train(data, tmp_path / "b", "--epochs", "1").exit_code == 0
    assert log_of(tmp_path / "b")["images"] == {"train": 52, "test": 12}


def test_cifar10_is_downloaded(
    file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--data cifar10 fetches torchvision's archive once and trains on it."""
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
    asked = []
    for out, size in (("a", "32"), ("b", "40")):
        result = train("cifar10", tmp_path / out, "--epochs", "1", "--size", size)
        assert result.exit_code == 0, result.output
        assert log_of(tmp_path / out)["images"] == {"train": 100, "test": 20}
        asked.append(len(file_server.requests))
    assert asked[0] == asked[1] > 0
    command = ["evaluate", str(tmp_path / "a" / "model.safetensors"), "--data", "cifar10", "--json"]
    measured = json.loads(CliRunner().invoke(main, command).stdout)["accuracy"]
    assert measured == pytest.approx(log_of(tmp_path / "a")["accuracy"], abs=0.051)  # one image of 20


def test_cifar10_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that fails is a message that says what else can be done."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    assert "train/CLASS" in rejected("cifar10", tmp_path / "out")


def test_the_systems_own_files_are_passed_over(images: Path, tmp_path: Path) -> None:
    """.DS_Store and its like are neither classes nor images."""
    data = tmp_path / "data"
    shutil.copytree(images, data)
    (data / "train" / ".ipynb_checkpoints").mkdir()
    for name in (".DS_Store", "Thumbs.db", ".hidden/a.png"):
        (data / "train" / "dark" / name).parent.mkdir(exist_ok=True)
        (data / "train" / "dark" / name).write_bytes(b"not an image")
    assert train(data, tmp_path / "out", "--epochs", "1").exit_code == 0
    assert log_of(tmp_path / "out")["unreadable"] == {}


def test_unreadable_images_are_counted_named_and_skipped(images: Path, tmp_path: Path) -> None:
    """A broken image costs itself only, and is named on the terminal and in the log."""
    data = tmp_path / "data"
    shutil.copytree(images, data)
    (data / "train" / "dark" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (data / "test" / "light" / "notes.txt").write_text("not an image")
    result = train(data, tmp_path / "out", "--epochs", "1")
    assert result.exit_code == 0
    assert "2 images could not be read" in result.output
    assert "notes.txt" in result.output
    log = log_of(tmp_path / "out")
    assert log["images"] == {"train": 63, "test": 16}
    assert [Path(path).name for path in log["unreadable"]] == ["0.png", "notes.txt"]


def test_a_class_without_a_readable_image(images: Path, tmp_path: Path) -> None:
    """Where nothing of a class can be read the run stops and names an image."""
    data = tmp_path / "data"
    shutil.copytree(images, data)
    for path in (data / "train" / "dark").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    message = rejected(data, tmp_path / "out")
    assert "no image of 'dark' can be read" in message
    assert ".png" in message


def test_names_that_plots_and_headers_could_stumble_over(tmp_path: Path) -> None:
    """A dollar in a class is no formula; a name that is no UTF-8 is rejected before the training."""
    write_images(tmp_path / "data", 8)
    (tmp_path / "data" / "dark").rename(tmp_path / "data" / "$^$")
    assert train(tmp_path / "data", tmp_path / "out", "--epochs", "1").exit_code == 0
    (tmp_path / "data" / "light").rename(tmp_path / "data" / os.fsdecode(b"caf\xe9"))
    assert "not UTF-8" in rejected(tmp_path / "data", tmp_path / "other")


def test_images_of_one_color(tmp_path: Path) -> None:
    """A channel that never varies has no deviation to divide by, and harms nothing."""
    for label, color in (("a", (10, 20, 7)), ("b", (200, 90, 7))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), color).save(tmp_path / "data" / label / f"{number}.png")
    assert train(tmp_path / "data", tmp_path / "out", "--epochs", "1", "--batch-size", "2").exit_code == 0


def test_folders_that_cannot_be_trained_on(images: Path, tmp_path: Path) -> None:
    """No folder, one class only, an empty class, and a test class unknown to train: a message each."""
    out = tmp_path / "out"
    assert "there is no folder" in rejected(tmp_path / "nowhere", out)
    assert "cannot be read" in rejected(300 * "x", out)
    data = tmp_path / "data"
    shutil.copytree(images, data)
    (data / "train" / "empty").mkdir()
    assert "train/empty holds no images" in rejected(data, out)
    (data / "train" / "empty").rmdir()
    shutil.copytree(data / "test" / "dark", data / "test" / "third")
    assert "third" in rejected(data, out)
    shutil.rmtree(data / "train" / "dark")
    assert "at least two class folders, found only 'light'" in rejected(data, out)
    shutil.rmtree(data / "train")
    assert "no train/" in rejected(data, out)


# Networks


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet", 62_006), ("lenet-wide", 1_982_986), ("cifar-resnet18", 11_173_962)],
)
def test_the_known_networks_have_their_known_sizes(name: str, parameters: int) -> None:
    """The networks for CIFAR-10 are those of the literature, to the parameter."""
    assert sum(parameter.numel() for parameter in NETWORKS[name](10).parameters()) == parameters


def test_resnet18_for_small_images(images: Path, tmp_path: Path) -> None:
    """A resnet18 from scratch for small images is the one for small images."""
    result = train(images, tmp_path / "out", "--network", "resnet18", "--size", "16", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert log_of(tmp_path / "out")["network"] == "cifar-resnet18"
    assert state_of(tmp_path / "out")["conv1.weight"].shape == (64, 3, 3, 3)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the weights of a torchvision classifier with its 1000 classes."""
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.manual_seed(0)
    torch.save(torchvision_models.squeezenet1_1().state_dict(), path)
    return path


@pytest.mark.parametrize("freeze", [True, False])
def test_fine_tuning(images: Path, backbone: Path, tmp_path: Path, freeze: bool) -> None:
    """A torchvision classifier starts from a file with a new last layer; the rest is frozen or not."""
    flags = ["--network", "squeezenet1_1", "--weights", str(backbone), "--size", "64", "--epochs", "1"]
    result = train(images, tmp_path / "out", *flags, *(["--freeze"] if freeze else []))
    assert result.exit_code == 0, result.output
    before, after = torch.load(backbone), state_of(tmp_path / "out")
    assert after["classifier.1.weight"].shape[0] == 2
    rest = [key for key in after if not key.startswith("classifier.1.")]
    assert all(torch.equal(before[key], after[key]) for key in rest) == freeze
    model = load_model(str(tmp_path / "out" / "model.safetensors"))
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (model.preprocessing.crop, model.preprocessing.resize) == (64, 73)


def test_a_frozen_network_keeps_its_batch_norm(images: Path, tmp_path: Path) -> None:
    """The running statistics of a frozen network are those it came with."""
    network = torchvision_models.resnet18()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.full_like(module.running_var, 0.5)  # type: ignore[arg-type]
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    flags = ["--network", "resnet18", "--weights", str(tmp_path / "resnet18.pth"), "--freeze", "--size", "32"]
    result = train(images, tmp_path / "out", *flags, "--epochs", "1", "--store", "fp16")
    assert result.exit_code == 0, result.output
    state = state_of(tmp_path / "out")
    assert all(value.eq(0.5).all() for key, value in state.items() if key.endswith("running_mean"))
    assert state["fc.weight"].dtype == torch.float16


def test_weights_of_another_network(images: Path, finished: Path, tmp_path: Path) -> None:
    """A checkpoint from another network does not fit, and the message says what does not."""
    flags = ["--network", "cifar-resnet10", "--weights", str(finished / "model.safetensors")]
    assert "do not fit cifar-resnet10" in rejected(images, tmp_path / "out", *flags)


def test_a_checkpoint_is_a_start(images: Path, finished: Path, tmp_path: Path) -> None:
    """A network of one's own goes on from its checkpoint with a new last layer."""
    flags = ["--weights", str(finished / "model.safetensors"), "--freeze", "--epochs", "1"]
    assert train(images, tmp_path / "out", *flags).exit_code == 0
    before, after = state_of(finished), state_of(tmp_path / "out")
    assert torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    preprocessing = [
        checkpoint.load_checkpoint(out / "model.safetensors").preprocessing
        for out in (finished, tmp_path / "out")
    ]
    assert preprocessing[0] == preprocessing[1]
    assert preprocessing[0].mean != (0, 0, 0)


def test_weights_without_statistics_get_those_of_the_data(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    """A bare state dict does not say its mean and std, so they are measured."""
    torch.save(state_of(finished), tmp_path / "bare.pth")
    assert (
        train(images, tmp_path / "out", "--weights", str(tmp_path / "bare.pth"), "--epochs", "1").exit_code
        == 0
    )
    measured = checkpoint.load_checkpoint(tmp_path / "out" / "model.safetensors").preprocessing
    assert measured == checkpoint.load_checkpoint(finished / "model.safetensors").preprocessing


def test_a_network_nobody_has_published(images: Path, tmp_path: Path) -> None:
    """--pretrained of a network of our own says that there is nothing to start from."""
    assert "nobody has published" in rejected(images, tmp_path / "out", "--pretrained")


def test_a_size_that_only_training_rejects(images: Path, tmp_path: Path) -> None:
    """Inception's auxiliary layer, which works in training alone, is tried before the images are read."""
    flags = ["--network", "inception_v3", "--size", "64", "--no-progressive"]
    assert "cannot take images of 64 pixels" in rejected(images, tmp_path / "out", *flags)
    assert "cannot be built for 100 pixels" in rejected(
        images, tmp_path / "out", "--network", "vit_b_16", "--size", "100"
    )


def test_an_unknown_network_is_an_error(images: Path, tmp_path: Path) -> None:
    """A network that cannot be trained is rejected with those that can."""
    assert "cifar-resnet10" in rejected(images, tmp_path / "out", "--network", "resnet9000")


def test_images_too_small_for_a_network(images: Path, tmp_path: Path) -> None:
    """A size that the network cannot take is found before the training."""
    assert "cannot take images of 8 pixels" in rejected(images, tmp_path / "out", "--size", "8")


# TrainingConfig


@pytest.mark.parametrize(
    "flags",
    [
        ["--epochs", "0"],
        ["--batch-size", "1"],
        ["--size", "4"],
        ["--max-lr", "0"],
        ["--max-lr", "nan"],
        ["--shift", "nan"],
        ["--seed", "99999999999999999999"],
        ["--seed", "one"],
        ["--test-share", "1"],
        ["--freeze"],
        ["--pretrained", "--weights", "file.pth"],
    ],
)
def test_impossible_options(images: Path, tmp_path: Path, flags: list[str]) -> None:
    """TrainingConfig that cannot be are usage errors."""
    assert train(images, tmp_path / "out", *flags).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_a_number_ends_the_run(images: Path, tmp_path: Path) -> None:
    """A run that diverges says so and writes nothing."""
    assert "lower --max-lr" in rejected(images, tmp_path / "out", "--max-lr", "1e30")


@pytest.mark.parametrize(
    "flags",
    [
        ["--momentum", "0"],
        ["--muon-lr", "0.02"],
        ["--weight-decay", "0.1"],
        ["--ema", "0"],
        ["--label-smoothing", "0.5"],
    ],
)
def test_options_change_the_result(images: Path, finished: Path, tmp_path: Path, flags: list[str]) -> None:
    """An option that is given is used: the weights are others."""
    assert train(images, tmp_path / "out", *flags).exit_code == 0
    assert not same(state_of(tmp_path / "out"), state_of(finished))


def test_momentum_is_used(images: Path, tmp_path: Path) -> None:
    """Two momenta above 0 give two results."""
    for momentum in ("0.5", "0.8"):
        assert train(images, tmp_path / momentum, "--momentum", momentum).exit_code == 0
    assert not same(state_of(tmp_path / "0.5"), state_of(tmp_path / "0.8"))


def test_an_output_that_cannot_be_written_is_found_before_training(images: Path, tmp_path: Path) -> None:
    """A folder that cannot be made stops the run before its first epoch."""
    (tmp_path / "file").touch()
    result = train(images, tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "cannot be written" in result.output
    assert "epoch" not in result.output


def test_progressive_sizes() -> None:
    """A third of the epochs at half the size, a third at three quarters; the last is always whole."""
    growing = TrainingConfig(epochs=6, progressive=True)
    assert [growing.size(number, 32) for number in range(1, 7)] == [16, 16, 24, 24, 32, 32]
    assert TrainingConfig(epochs=1, progressive=True).size(1, 32) == 32
    assert TrainingConfig(epochs=6).size(1, 32) == 32


def test_augmentation_keeps_shape_and_varies() -> None:
    """Each image is shifted, mirrored and cut out on its own, and stays within its range."""
    batch = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32).repeat(64, 1, 1, 1)
    half = torch.arange(64) % 2 == 0
    augmented = augment(batch, torch.Generator().manual_seed(0), mirrored=half, shift=0.125, cutout=0.25)
    assert augmented.shape == batch.shape
    assert 0 <= augmented.min() < augmented.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in augmented}) > 60


def test_each_augmentation_does_what_it_says() -> None:
    """A shift moves the whole image, a flip mirrors it, cutout grays one square; none changes nothing."""
    batch = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1

    def changed(**options: Any) -> torch.Tensor:
        return augment(batch, torch.Generator().manual_seed(1), **options)

    assert torch.equal(changed(), batch)
    half = torch.arange(32) % 2 == 0
    for number, (before, after) in enumerate(zip(batch, changed(mirrored=half), strict=True)):
        assert torch.equal(after, before.flip(2) if number % 2 == 0 else before)
    for before, after in zip(batch, changed(shift=0.125), strict=True):
        padded = nn.functional.pad(before[None], (2,) * 4, mode="reflect")[0]
        windows = [padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        assert sum(torch.equal(after, window) for window in windows) >= 1
    for before, after in zip(batch, changed(cutout=0.25), strict=True):
        gray = after.eq(0).all(0)
        assert torch.equal(after[:, ~gray], before[:, ~gray])
        assert 4 <= gray.sum() <= 16  # a part of it may lie outside
    assert resize(batch, 8).shape == (32, 3, 8, 8)
