"""Files of trainers and of other tools as weights: each kind loads, or the message says what it is."""

import argparse
import pickle
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from resnet_service.models import Model, ModelSource, load_model
from tests.support.models import CLASSIFIER, load_error, random_classifier, same_weights

CLASSES: Final = 3

State = Mapping[str, Tensor]


def state_dict() -> dict[str, Tensor]:
    return dict(random_classifier(CLASSES).state_dict())


def with_prefix(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state_dict().items()}


def load(tmp_path: Path, weights: Path) -> Model:
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\nwasp\n")
    return load_model(ModelSource(CLASSIFIER, str(weights), labels))


def within(entry: str) -> dict[str, object]:
    return {entry: state_dict(), "epoch": 3}


def averaged() -> State:
    return AveragedModel(random_classifier(CLASSES)).state_dict()


def of_lightning() -> object:
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": with_prefix("model."),
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.1)}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "arch": "squeezenet"},
    }


def of_compiled_lightning() -> object:
    return {"state_dict": with_prefix("model._orig_mod."), "hyper_parameters": {}}


LOADED: Final[dict[str, Callable[[], object]]] = {
    "state dict": state_dict,
    "half precision": lambda: {key: value.half() for key, value in state_dict().items()},
    "parameters": lambda: dict(random_classifier(CLASSES).named_parameters()),
    **{
        f"prefix {prefix}": partial(with_prefix, prefix)
        for prefix in (
            *("module.", "_orig_mod.", "model.", "net."),
            *("module._orig_mod.", "_orig_mod.module.", "model.net.", "net.module._orig_mod."),
        )
    },
    **{
        f"entry {entry}": partial(within, entry)
        for entry in ("state_dict", "model_state_dict", "model", "net", "weights", "ema", "module")
    },
    "name beside": lambda: {"model": "squeezenet", "state_dict": with_prefix("module.")},
    "nested": lambda: {"ema": {"module": state_dict(), "updates": 7}},
    "average": averaged,
    "arguments": lambda: {
        "model": state_dict(),
        "args": argparse.Namespace(lr=0.1, data=Path("photos"), config=SimpleNamespace(epochs=3)),
    },
    "NumPy": lambda: {
        "net": state_dict(),
        "best": np.float64(0.9),
        "epoch": np.int64(3),
        "is_best": np.bool_(True),
        "confusion": np.ones((3, 3), np.float32),
    },
    "Lightning": of_lightning,
    "compiled Lightning": of_compiled_lightning,
}


CASES: Final = [(kind, True) for kind in LOADED] + [
    (kind, False) for kind in ("state dict", "arguments", "NumPy")
]


@pytest.mark.parametrize(("kind", "is_zip"), CASES)
def test_checkpoint_of_a_trainer_is_loaded(tmp_path: Path, kind: str, is_zip: bool) -> None:
    """In the format of torch, and in the one that it wrote before 1.6."""
    torch.save(LOADED[kind](), tmp_path / "run.pth", _use_new_zipfile_serialization=is_zip)
    model = load(tmp_path, tmp_path / "run.pth")
    assert model.labels == ("ant", "bee", "wasp")
    for key, value in model.network.state_dict().items():
        assert torch.allclose(value, state_dict()[key], atol=1e-3)


def test_file_of_numpy_1_is_loaded(tmp_path: Path) -> None:
    """NumPy 1 names the module of the same objects numpy.core."""
    torch.save({"model": state_dict(), "best": np.float64(0.9)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same_weights(load(tmp_path, tmp_path / "old.pth").network, random_classifier(CLASSES))


def test_prefix_of_some_keys_is_kept(tmp_path: Path) -> None:
    """Here the loss of a Lightning module has weights too: the message names both kinds of keys."""
    torch.save({"state_dict": {**with_prefix("model."), "loss.weight": torch.ones(3)}}, tmp_path / "run.ckpt")
    message = load_error(CLASSIFIER, str(tmp_path / "run.ckpt"))
    assert "of 53 tensors for the network's 52" in message
    assert "53 are unexpected (loss.weight, model.classifier.1.bias, " in message


@pytest.mark.parametrize(
    ("name", "auxiliary"),
    [("googlenet", None), ("googlenet", 1000), ("inception_v3", None), ("inception_v3", CLASSES)],
)
def test_auxiliary_heads_are_optional(tmp_path: Path, name: str, auxiliary: int | None) -> None:
    """They are used for training only: a file may lack them, and those for other classes do not matter."""
    network = models.get_model(
        name, weights=None, num_classes=CLASSES, aux_logits=auxiliary is not None, init_weights=False
    )
    if auxiliary is not None:
        other = models.get_model(name, weights=None, num_classes=auxiliary, init_weights=False)
        for key in ("aux1", "aux2", "AuxLogits"):
            if hasattr(network, key):
                setattr(network, key, getattr(other, key))
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    (tmp_path / "labels.json").write_text('["ant", "bee", "wasp"]')
    loaded = load_model(ModelSource(name, str(tmp_path / "mine.pth"), tmp_path / "labels.json"))
    image = torch.rand(1, 3, loaded.preprocessing.crop, loaded.preprocessing.crop)
    with torch.inference_mode():
        network.eval().transform_input = True  # as with published weights
        assert torch.equal(loaded.network(image), network(image))


def save_network(path: Path) -> None:
    torch.save(random_classifier(CLASSES), path)


def save_within(path: Path) -> None:
    torch.save({"model": random_classifier(CLASSES), "epoch": 3}, path)


class Config:
    """A class of the user's own code."""


def save_class(path: Path) -> None:
    torch.save({"model": state_dict(), "config": Config()}, path)


def save_legacy_class(path: Path) -> None:
    torch.save({"model": state_dict(), "config": Config()}, path, _use_new_zipfile_serialization=False)


def save_torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def save_program(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def save_archive(*names: str) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"")

    return save


def save_bytes(content: bytes) -> Callable[[Path], int]:
    return lambda path: path.write_bytes(content)


def save_saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").touch()


def save_folder(path: Path) -> None:
    path.mkdir()
    save_file(state_dict(), path / "model.safetensors")


def save_openvino_weights(path: Path) -> None:
    path.with_suffix(".xml").write_text("<net/>")
    path.write_bytes(bytes(100))


def save_scikit_model(path: Path) -> None:
    path.write_bytes(pickle.dumps(Config(), protocol=2))


CODE: Final = "code in a weights file is never run"
SAVE: Final = "torch.save(network.state_dict(), FILE)"

REJECTED: Final[dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]]] = {
    "network": ("a.pth", save_network, ("a whole network", "squeezenet.SqueezeNet", CODE, SAVE)),
    "network within": ("a.pth", save_within, ("a whole network", "squeezenet.SqueezeNet", CODE, SAVE)),
    "class": ("a.pth", save_class, ("test_trainer_checkpoints.Config", CODE, SAVE)),
    "class, legacy": ("a.pth", save_legacy_class, ("test_trainer_checkpoints.Config", CODE, SAVE)),
    "pickle": ("a.pkl", save_scikit_model, ("more than tensors", CODE, SAVE)),
    "list": ("a.pth", lambda path: torch.save([1, 2], path), ("an object of the type list", SAVE)),
    "tensor": ("a.pth", lambda path: torch.save(torch.ones(2, 3), path), ("shape [2, 3]", SAVE)),
    "entries": (
        "a.pth",
        lambda path: torch.save({"optimizer": {"lr": 0.1}, "epoch": 3}, path),
        ("'optimizer' (dict of 1), 'epoch' (int)", SAVE),
    ),
    "nothing": ("a.pth", lambda path: torch.save({}, path), ("an empty dictionary", SAVE)),
    "TorchScript": ("a.pt", save_torchscript, ("TorchScript archive", "torch.jit.load(FILE).state_dict()")),
    "torch.export": ("a.pt", save_program, ("torch.export", "torch.export.load(FILE).state_dict")),
    "TorchServe": ("a.mar", save_archive("MAR-INF/MANIFEST.json", "a.pth"), ("TorchServe", "extract")),
    "Keras": ("a.keras", save_archive("config.json", "model.weights.h5"), ("Keras", "PyTorch")),
    "NumPy": ("a.npz", lambda path: np.savez(path, x=np.ones(2)), ("NumPy arrays", "torch.save")),
    "ZIP": ("a.zip", save_archive("photo.jpg"), ("ZIP archive", "name the file")),
    "Keras, HDF5": ("a.h5", save_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), ("HDF5", "PyTorch")),
    "NumPy array": ("a.npy", lambda path: np.save(path, np.ones(2)), ("NumPy array", "torch.save")),
    "SavedModel": ("saved", save_saved_model, ("a SavedModel of TensorFlow", "PyTorch")),
    "TensorFlow": ("frozen.pb", save_bytes(b"\x0a\x20"), ("TensorFlow", "PyTorch")),
    "TensorFlow Lite": ("a.tflite", save_bytes(b"\x1c\0\0\0TFL3" + bytes(9)), ("TensorFlow", "PyTorch")),
    "ONNX": ("a.bin", save_bytes(b"\x08\x08\x12\x07pytorch\x1a\x05"), ("an ONNX model", "--model FILE.onnx")),
    "OpenVINO": ("a.xml", save_bytes(b'<?xml version="1.0"?><net/>'), ("OpenVINO", SAVE)),
    "OpenVINO weights": ("a.bin", save_openvino_weights, ("OpenVINO", SAVE)),
    "folder": ("folder", save_folder, ("a folder", "model.safetensors")),
    "Git LFS": ("a.pth", save_bytes(b"version https://git-lfs.github.com/spec/v1\n"), ("git lfs pull",)),
    "web page": ("a.pth", save_bytes(b"<!DOCTYPE html><html>"), ("a web page", "download")),
    "gzip": ("a.pth.gz", save_bytes(b"\x1f\x8b\x08\0"), ("gzip", "decompress")),
    "text": ("a.txt", save_bytes(b"ant\nbee"), ("a text file",)),
    "empty": ("a.pth", save_bytes(b""), ("empty", "again")),
    "truncated": ("a.pth", save_bytes(b"PK\x03\x04" + bytes(99)), ("its end is missing", "again")),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("name", "save", "expected"), [pytest.param(*case, id=kind) for kind, case in REJECTED.items()]
)
def test_other_file_is_rejected_with_what_it_is_and_what_helps(
    tmp_path: Path, name: str, save: Callable[[Path], Any], expected: tuple[str, ...]
) -> None:
    path = tmp_path / name
    save(path)
    message = load_error(CLASSIFIER, str(path)).partition("Alternatives:")[0]
    assert str(path) in message
    assert [words for words in expected if words not in message] == []
