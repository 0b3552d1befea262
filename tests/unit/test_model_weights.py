"""Weights from files and URLs: formats, hashes, downloads, and files with code or other content."""

import hashlib
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resnet_service.models import ModelSource, catalog, load_model
from tests.support.file_server import FileServer
from tests.support.models import (
    CLASSIFIER,
    PublishFn,
    load_error,
    random_classifier,
    same_weights,
    write_checkpoint,
)

pytestmark = pytest.mark.usefixtures("torch_cache")


def add_hash(path: Path) -> Path:
    """Rename a file in PyTorch's style: append the first eight digits of its SHA-256."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(path.with_stem(f"{path.stem}-{digest}"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_file_replaces_published_weights(tmp_path: Path, suffix: str) -> None:
    """A state dict in a PyTorch file or a safetensors file is loaded."""
    network = random_classifier()
    path = tmp_path / f"weights{suffix}"
    save: Any = torch.save if suffix == ".pth" else save_file
    save(network.state_dict(), path)
    assert same_weights(load_model(ModelSource(CLASSIFIER, str(path))).network, network)


def test_format_is_detected_from_the_content(tmp_path: Path) -> None:
    """A safetensors file with any suffix is loaded."""
    network = random_classifier()
    path = tmp_path / "pytorch_model.bin"
    save_file(network.state_dict(), path)
    assert same_weights(load_model(ModelSource(CLASSIFIER, str(path))).network, network)


@pytest.mark.parametrize("name", ["best-20240101.pth", "run-deadbeef.pth", "net-00000000.bin"])
def test_file_name_of_a_user_is_not_checked_as_a_hash(tmp_path: Path, name: str) -> None:
    """Only publishers put the hash of a file into its name; here it is a date or the id of a run."""
    network = random_classifier()
    torch.save(network.state_dict(), tmp_path / name)
    assert same_weights(load_model(ModelSource(CLASSIFIER, str(tmp_path / name))).network, network)


@pytest.mark.parametrize("digits", [8, 64])
def test_expected_hash_is_checked(tmp_path: Path, digits: int) -> None:
    """With its first digits, in any case, or all of them."""
    torch.save(random_classifier().state_dict(), tmp_path / "net.pth")
    expected = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()[:digits]
    for sha256 in (expected, expected.upper()):
        load_model(ModelSource(CLASSIFIER, str(tmp_path / "net.pth"), weights_sha256=sha256))
    other = "0" * digits
    message = load_error(ModelSource(CLASSIFIER, str(tmp_path / "net.pth"), weights_sha256=other))
    assert f"its SHA-256 starts with {expected}, and {other} was expected" in message


def test_expected_hash_of_a_checkpoint_is_checked(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mine.safetensors")
    message = load_error(ModelSource(str(tmp_path / "mine.safetensors"), weights_sha256="00000000"))
    assert "SHA-256" in message


def test_url_is_downloaded_once(file_server: FileServer, torch_cache: Path, publish: PublishFn) -> None:
    """Published weights are downloaded once to PyTorch's cache, and checked against the hash in the name."""
    network = random_classifier()
    torch.save(network.state_dict(), file_server.folder / "weights.pth")
    path = add_hash(file_server.folder / "weights.pth")
    publish(CLASSIFIER, f"{file_server.url}/{path.name}")
    for _ in range(2):
        assert same_weights(
            load_model(ModelSource(CLASSIFIER, f"{file_server.url}/{path.name}")).network, network
        )
    assert file_server.requests == [f"/{path.name}"]
    assert (torch_cache / path.name).exists()


def test_equal_file_names_at_two_urls_are_two_cache_entries(file_server: FileServer) -> None:
    """Without a hash in the file name, the URL determines the cache entry."""
    biases = []
    for number, folder in enumerate(("a", "b")):
        (file_server.folder / folder).mkdir()
        state = {**random_classifier().state_dict(), "classifier.1.bias": torch.full((1000,), float(number))}
        save_file(state, file_server.folder / folder / "model.safetensors")
        loaded = load_model(ModelSource(CLASSIFIER, f"{file_server.url}/{folder}/model.safetensors"))
        biases.append(float(loaded.network.state_dict()["classifier.1.bias"][0]))
    assert biases == [0, 1]


def test_missing_weights_file_is_reported() -> None:
    """A missing file is reported as such."""
    assert "file not found" in load_error(CLASSIFIER, "missing.pth")


def test_http_404_is_reported_with_the_url(file_server: FileServer) -> None:
    """The message contains the URL and the status."""
    message = load_error(CLASSIFIER, f"{file_server.url}/missing.pth")
    assert "404" in message
    assert "/missing.pth" in message


@pytest.mark.parametrize("is_published", [True, False], ids=["published", "expected"])
def test_download_with_wrong_hash_is_rejected(
    file_server: FileServer, torch_cache: Path, publish: PublishFn, is_published: bool
) -> None:
    """A downloaded file that does not match the hash in its name, or the expected one, is not kept."""
    torch.save({}, file_server.folder / "net-00000000.pth")
    url = f"{file_server.url}/net-00000000.pth"
    if is_published:
        publish(CLASSIFIER, url)
        message = load_error(CLASSIFIER)
    else:
        message = load_error(ModelSource(CLASSIFIER, url, weights_sha256="00000000"))
    assert url in message
    assert "SHA-256" in message
    assert not [path for path in torch_cache.rglob("*") if path.is_file()]


def test_broken_connection_leaves_no_file(file_server: FileServer, torch_cache: Path) -> None:
    """If the connection ends before the file, the message has the URL, and the next start gets the file."""
    torch.save(random_classifier().state_dict(), file_server.folder / "weights.pth")
    url = f"{file_server.url}/{add_hash(file_server.folder / 'weights.pth').name}"
    file_server.breaks_connections = True
    assert url in load_error(CLASSIFIER, url)
    assert not [path for path in torch_cache.rglob("*") if path.is_file()]
    file_server.breaks_connections = False
    assert same_weights(load_model(ModelSource(CLASSIFIER, url)).network, random_classifier())


def test_concurrent_downloads_of_one_file_succeed(file_server: FileServer, torch_cache: Path) -> None:
    """Two downloads that are in progress at the same time both load, and the cache has one complete file."""
    torch.save(random_classifier().state_dict(), file_server.folder / "weights.pth")
    path = add_hash(file_server.folder / "weights.pth")
    file_server.before_response = threading.Barrier(2, timeout=30).wait
    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(load_model, [ModelSource(CLASSIFIER, f"{file_server.url}/{path.name}")] * 2))
    assert len(file_server.requests) == 2
    assert all(same_weights(model.network, random_classifier()) for model in models)
    [cached] = torch_cache.glob("*/*")
    assert cached.read_bytes() == path.read_bytes()


def test_downloaded_file_has_the_mode_of_the_umask(file_server: FileServer, torch_cache: Path) -> None:
    """Another user may read a file in a shared cache, as if torch had downloaded it."""
    torch.save(random_classifier().state_dict(), file_server.folder / "weights.pth")
    path = add_hash(file_server.folder / "weights.pth")
    load_model(ModelSource(CLASSIFIER, f"{file_server.url}/{path.name}"))
    [cached] = torch_cache.glob("*/*")
    assert cached.stat().st_mode == path.stat().st_mode


def test_download_prints_nothing_but_a_progress_bar(
    file_server: FileServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard output stays empty; standard error has the progress bar."""
    torch.save(random_classifier().state_dict(), file_server.folder / "weights.pth")
    load_model(ModelSource(CLASSIFIER, f"{file_server.url}/weights.pth"))
    output, errors = capfd.readouterr()
    assert output == ""
    assert "100%" in errors
    assert "known_hash" not in errors


def test_damaged_download_is_downloaded_again(file_server: FileServer) -> None:
    """A file without a hash that cannot be read is not kept in the cache."""
    (file_server.folder / "net.pth").write_bytes(b"half a file")
    url = f"{file_server.url}/net.pth"
    load_error(CLASSIFIER, url)
    torch.save(random_classifier().state_dict(), file_server.folder / "net.pth")
    assert same_weights(load_model(ModelSource(CLASSIFIER, url)).network, random_classifier())


def test_local_file_with_wrong_hash_is_rejected(tmp_path: Path) -> None:
    """A local file with the name of published weights is also checked against the hash in it."""
    path = tmp_path / Path(catalog.get_spec(CLASSIFIER).source).name
    torch.save({}, path)
    assert "SHA-256" in load_error(CLASSIFIER, str(path))


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    """The message of limited length says what the file holds and what the network needs."""
    path = tmp_path / "other.pth"
    torch.save(random_classifier().state_dict(), path)
    message = load_error("mobilenet_v3_small", str(path))
    assert "do not fit mobilenet_v3_small: of 52 tensors for the network's 244, " in message
    assert "are missing (classifier.0.bias, " in message
    assert "are unexpected (classifier.1.bias, " in message
    assert len(message) < 2000


def test_weights_of_another_size_of_the_network_are_rejected(tmp_path: Path) -> None:
    """The message contains both shapes of a tensor."""
    state = random_classifier().state_dict()
    torch.save(state | {"features.0.weight": torch.zeros(96, 3, 7, 7)}, tmp_path / "other.pth")
    message = load_error(CLASSIFIER, str(tmp_path / "other.pth"))
    assert "1 have another shape (features.0.weight [96, 3, 7, 7] instead of [64, 3, 3, 3])" in message


class Exploit:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, suffix: str) -> None:
    """A weights file with code is rejected and the code is not run."""
    path, trace = tmp_path / f"exploit{suffix}", tmp_path / "trace"
    content = {"fc.weight": Exploit(trace)}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert "never run" in load_error(CLASSIFIER, str(path))
    assert not trace.exists()


def test_code_in_a_cached_pickle_is_not_run(torch_cache: Path, tmp_path: Path) -> None:
    """A file in the cache with the name of published weights is checked against the hash in the name."""
    torch_cache.mkdir(parents=True)
    content = {"fc.weight": Exploit(tmp_path / "trace")}
    torch.save(content, torch_cache / Path(catalog.get_spec(CLASSIFIER).source).name)
    assert "damaged" in load_error(CLASSIFIER)
    assert not (tmp_path / "trace").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\x80\x04", b"PK\x03\x04broken", os.urandom(1000)],
    ids=["empty", "text", "pickle", "zip", "random"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_weights_file_is_rejected(tmp_path: Path, content: bytes, suffix: str) -> None:
    """Any other content raises ModelLoadError with the path."""
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    assert str(path) in load_error(CLASSIFIER, str(path))
    if suffix == ".safetensors":
        assert str(path) in load_error(str(path))


def test_file_without_state_dict_is_rejected(tmp_path: Path) -> None:
    """A file that does not contain named tensors is rejected."""
    torch.save([1, 2, 3], tmp_path / "list.pth")
    assert "does not contain a state dict" in load_error(CLASSIFIER, str(tmp_path / "list.pth"))
