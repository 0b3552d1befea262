"""Recognize files that are not weights of PyTorch, to say what they are and what helps."""

import zipfile
from pathlib import Path
from typing import Final

_SAVE: Final = "where the network was trained, save its state dict: torch.save(network.state_dict(), FILE)"
_OWN_NETWORK: Final = f"which contains its own network; {_SAVE}"
_TENSORFLOW: Final = "whose weights do not fit a network of PyTorch; train the network with PyTorch"

_SIGNATURES: Final = {
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file (Keras or TensorFlow), {_TENSORFLOW}",
    b"\x93NUMPY": "a NumPy array; save a mapping from names to tensors with torch.save",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run: git lfs pull",
    b"\x1f\x8b": "compressed with gzip; decompress it",
}
_TORCHSCRIPT: Final = (
    "a TorchScript archive, which contains code; save its tensors: "
    "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
)
_EXPORTED: Final = (
    "a program of torch.export; save its tensors: torch.save(torch.export.load(FILE).state_dict, NEW_FILE)"
)
_TORCHSERVE: Final = "an archive of TorchServe; extract the file with the weights: unzip FILE"
_KERAS: Final = f"a Keras model, {_TENSORFLOW}"
_NUMPY: Final = "a file of NumPy arrays; save a mapping from names to tensors with torch.save"
_OTHER_ARCHIVE: Final = "a ZIP archive without a file of PyTorch in it; name the file with the weights"
_HEADER_BYTES: Final = 512
_TEXT_SHOWN: Final = 40
_MIN_ONNX_VERSION: Final = 3
_MAX_ONNX_VERSION: Final = 32


def describe_foreign_file(path: Path) -> str | None:
    """Return what a file or folder is and what helps, if it cannot be a state dict; None if it may be one.

    Nothing is loaded: the first bytes, the names in an archive, and the name of the file decide. Raises
    OSError if the file cannot be read.
    """
    if path.is_dir():
        return _describe_folder(path)
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if not header:
        return "empty; copy or download it again"
    for signature, description in _SIGNATURES.items():
        if header.startswith(signature):
            return description
    if header.startswith(b"PK\x03\x04"):
        return _describe_archive(path)
    text = header.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not the file itself; download it from the address of the file"
    if text.startswith((b"<?xml", b"<net")) or (path.suffix == ".bin" and path.with_suffix(".xml").exists()):
        return f"a part of an OpenVINO model, {_OWN_NETWORK}"
    if path.suffix in (".pb", ".index") or header[4:8] == b"TFL3":
        return f"a file of TensorFlow, {_TENSORFLOW}"
    if _is_onnx(path, header):
        return "an ONNX model, which contains its own network; serve it with --model FILE.onnx"
    first_line = header.partition(b"\n")[0].rstrip()[:_TEXT_SHOWN]
    if header.isascii() and first_line.decode("ascii").isprintable():
        return f"a text file that begins with {first_line.decode('ascii')!r}; name a file with weights"
    return None


def _describe_folder(path: Path) -> str:
    if (path / "saved_model.pb").exists():
        return f"a SavedModel of TensorFlow, {_TENSORFLOW}"
    files = sorted(
        file for pattern in ("*.safetensors", "*.pth", "*.pt", "*.bin") for file in path.glob(pattern)
    )
    return (
        f"a folder; name a file, for example {files[0]}" if files else "a folder without weights; name a file"
    )


def _describe_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "a damaged archive: its end is missing; copy or download it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return _TORCHSCRIPT
    if any(name.endswith("archive_format") for name in names):
        return _EXPORTED
    if any(name.startswith("MAR-INF/") for name in names):
        return _TORCHSERVE
    if "model.weights.h5" in names:
        return _KERAS
    if names and all(name.endswith(".npy") for name in names):
        return _NUMPY
    return None if any(name.endswith("data.pkl") for name in names) else _OTHER_ARCHIVE


def _is_onnx(path: Path, header: bytes) -> bool:
    """Return whether a file begins with the version of ONNX's format and the name of a producer."""
    is_message = len(header) > 2 and header[0] == 0x08 and header[2] == 0x12
    return path.suffix == ".onnx" or (is_message and _MIN_ONNX_VERSION <= header[1] <= _MAX_ONNX_VERSION)
