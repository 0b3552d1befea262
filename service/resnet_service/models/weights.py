"""Weights in files and at URLs.

A URL is downloaded once, with a progress bar, to PyTorch's cache directory. A file of published weights has
the start of its hash in its name (`resnet50-11ad3fa6.pth`), and is checked against it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from resnet_service.errors import ModelLoadError
from resnet_service.models import catalog
from resnet_service.models.download import (
    CONNECT_TIMEOUT_S,
    DOWNLOAD_ERRORS,
    check_reachable,
    download,
    is_url,
)
from resnet_service.models.state_dicts import read_state_dict
from resnet_service.models.timm_models import TimmSpec


def torch_cache_dir() -> Path:
    """Return the directory in which torch and torchvision cache downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def load_state_dict(source: str, sha256: str | None = None) -> Mapping[str, Tensor]:
    """Read a state dict from a path or an http(s) URL: safetensors, or a pickle that contains only data.

    `sha256` are digits that the hash of the file must start with; a file with the name of published weights
    is also checked against the hash in its name. Raises ModelLoadError if the file cannot be read or
    downloaded, its hash differs or its format is another.
    """
    if not is_url(source):
        return _read(Path(source), sha256)
    path, is_new = _download(source, sha256)
    try:
        return _read(path, sha256)
    except ModelLoadError:
        if is_new:
            path.unlink()  # so that the next start downloads it again
        raise


def cache_path(url: str) -> Path:
    """Return the path in the cache for the file at `url`; the file may not exist yet."""
    name = Path(urlsplit(url).path).name or "weights"
    # Other files with the same name on two servers are different files.
    is_published = name in catalog.published_files()
    return torch_cache_dir() / ("" if is_published else hashlib.sha256(url.encode()).hexdigest()[:16]) / name


def fetch_published(spec: catalog.ModelSpec | TimmSpec) -> bool:
    """Download the weights of `spec` unless they are at hand; return whether they were downloaded now.

    Raises ModelLoadError if their server does not respond within 5 s, or the download fails.
    """
    if isinstance(spec, TimmSpec):
        return spec.fetch_published()[1]
    if not is_url(spec.source) or cache_path(spec.source).exists():
        return False
    try:
        check_reachable(spec.source, CONNECT_TIMEOUT_S)
    except DOWNLOAD_ERRORS as error:
        raise ModelLoadError(str(error)) from error
    return _download(spec.source)[1]


def check_hash(path: Path, name: str, sha256: str | None = None) -> None:
    """Check that the SHA-256 of the file at `path` starts with the digits `sha256`, if there are any.

    If `name` is that of a file of published weights, it must also start with the hash in it. Raises
    ModelLoadError, and OSError if the file cannot be read.
    """
    expected = {"its name has": catalog.published_hash(name), "was expected": sha256 and sha256.lower()}
    if not any(expected.values()):
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    for reason, digits in expected.items():
        if digits and not actual.startswith(digits):
            raise ModelLoadError(
                f"{path.with_name(name)} is damaged or another file: its SHA-256 starts with "
                f"{actual[: len(digits)]}, and {digits} {reason}"
            )


def _read(path: Path, sha256: str | None) -> Mapping[str, Tensor]:
    try:
        if path.is_file():
            check_hash(path, path.name, sha256)
        return read_state_dict(path)
    except FileNotFoundError as error:
        raise ModelLoadError(f"file not found: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a path that the file system does not accept
        raise ModelLoadError(f"{path} is not a readable weights file: {error}") from error


def _download(url: str, sha256: str | None = None) -> tuple[Path, bool]:
    """Download `url` unless it is cached; return its path and whether it was downloaded now."""
    try:
        path = cache_path(url)
        if path.exists():
            return path, False
        download(url, path, check=lambda temporary: check_hash(temporary, path.name, sha256))
    except (*DOWNLOAD_ERRORS, ModelLoadError) as error:
        raise ModelLoadError(f"{url} could not be downloaded: {error}") from error
    return path, True
