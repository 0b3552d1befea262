"""Loading models: names, files, URLs from a real file server, and what cannot be had."""

import hashlib
import os
import pickle
import re
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, densenet121, resnet18

from resnet_service.errors import ModelLoadError
from resnet_service.images import Preprocessing, decode_image
from resnet_service.models import catalog, checkpoint, load_model
from resnet_service.models.networks import NETWORKS
from tests.support import REPOSITORY
from tests.support.file_server import FileServer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty cache of weights, and no way to the internet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: rejected at once
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib keeps the proxies of its first call
    return tmp_path / "torch" / "hub" / "checkpoints"


def random_resnet18(classes: int = 1000) -> nn.Module:
    torch.manual_seed(0)
    return cast(nn.Module, resnet18(num_classes=classes))


def with_hash(path: Path) -> Path:
    """Rename a file the way torch names its own: with the first digits of its SHA-256."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(path.with_stem(f"{path.stem}-{digest}"))


def same_weights(network: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


# What can be had


def test_the_bundled_model_works_offline() -> None:
    """`bundled` loads with no cache and no network, and is small."""
    model = load_model("bundled")
    assert set(model.labels) == {
        *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    }
    file = REPOSITORY / "service/resnet_service/models/bundled/cifar10.safetensors"
    assert file.stat().st_size < 25_000_000
    assert not model.network.training


def test_the_bundled_model_has_its_card() -> None:
    """The card beside the bundled model tells its network, data, epochs, seed, accuracy and hardware."""
    card = (REPOSITORY / "service/resnet_service/models/bundled/cifar10.md").read_text(encoding="utf-8")
    trained = checkpoint.load_checkpoint(
        REPOSITORY / "service/resnet_service/models/bundled/cifar10.safetensors"
    )
    assert trained.training["accuracy"] >= 0.94
    for fact in (trained.network, f"{trained.training['accuracy']:.2%}", "Seed", "Epochs", "Hardware"):
        assert fact in card


def test_the_bundled_model_calls_a_dog_a_dog(dog: bytes) -> None:
    """On a photograph of a dog, far larger than CIFAR-10's images, its first answer is dog."""
    model = load_model("bundled")
    crop = torch.tensor(decode_image(dog, model.preprocessing)).permute(2, 0, 1)
    mean = torch.tensor(model.preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(model.preprocessing.std).view(3, 1, 1)
    with torch.inference_mode():
        logits = model.network(((crop / 255 - mean) / std)[None])
    assert model.labels[int(logits.argmax())] == "dog"


def test_a_published_model_brings_its_labels_and_transforms(
    file_server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torchvision name is downloaded into torch's usual cache and has its weights' labels and transforms.

    Everything is as for a user but the address: the entry points to a file server of this test.
    """
    network = random_resnet18()
    torch.save(network.state_dict(), file_server.folder / "resnet18.pth")
    file = with_hash(file_server.folder / "resnet18.pth").name
    published = catalog.get_spec("resnet18")
    here = replace(published, url=f"{file_server.url}/{file}")
    monkeypatch.setattr(catalog, "get_spec", lambda *_: here)
    for _ in range(2):
        model = load_model("resnet18")
        assert same_weights(model.network, network)
    assert file_server.requests == [f"/{file}"]
    assert (cache / file).exists()
    assert model.labels == tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    assert model.preprocessing == Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_resnet50_uses_its_best_published_weights() -> None:
    """`resnet50` means ResNet50_Weights.DEFAULT with its resize to 232, not the first version's 256."""
    entry = catalog.get_spec("resnet50")
    assert entry.url == ResNet50_Weights.IMAGENET1K_V2.url
    assert (entry.preprocessing.resize, entry.preprocessing.crop) == (232, 224)
    assert len(entry.labels) == 1000


def test_every_classifier_of_torchvision_is_described() -> None:
    """Each name has labels and preprocessing for each of its published weights."""
    assert {"resnet152", "mobilenet_v3_small", "vit_b_16"} <= set(catalog.model_names())
    for name in catalog.model_names():
        for weights in catalog.published_weights(name):
            entry = catalog.get_spec(name, weights)
            assert len(entry.labels) == 1000
            assert entry.preprocessing.crop <= entry.preprocessing.resize


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    """A state dict or safetensors file replaces the published weights."""
    network = random_resnet18()
    path = tmp_path / f"mine{suffix}"
    save: Any = torch.save if suffix == ".pth" else save_file
    save(network.state_dict(), path)
    assert same_weights(load_model("resnet18", str(path)).network, network)


def test_the_content_decides_the_format(tmp_path: Path) -> None:
    """Safetensors under any name are read as such."""
    network = random_resnet18()
    save_file(network.state_dict(), tmp_path / "pytorch_model.bin")
    assert same_weights(load_model("resnet18", str(tmp_path / "pytorch_model.bin")).network, network)


def test_a_date_in_a_name_is_no_hash(tmp_path: Path) -> None:
    """A file named after its day is not held to be damaged."""
    network = random_resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18-20260115.pth")
    assert same_weights(load_model("resnet18", str(tmp_path / "resnet18-20260115.pth")).network, network)


def test_densenets_published_keys_are_understood(tmp_path: Path) -> None:
    """The published densenet files name their layers as an older torch did."""
    torch.manual_seed(0)
    network = densenet121()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in network.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    assert same_weights(load_model("densenet121", str(tmp_path / "densenet.pth")).network, network)


@pytest.mark.parametrize("wrap", ["state_dict", "model"])
def test_weights_as_trainers_save_them(tmp_path: Path, wrap: str) -> None:
    """State dicts inside a training checkpoint, with DistributedDataParallel's prefix, are found."""
    network = random_resnet18()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({wrap: state, "epoch": 3}, tmp_path / "run.pth")
    assert same_weights(load_model("resnet18", str(tmp_path / "run.pth")).network, network)


def test_weights_from_a_url_are_downloaded_once(file_server: FileServer, cache: Path) -> None:
    """A URL is fetched into torch's cache, its hash checked, and not fetched again."""
    network = random_resnet18()
    torch.save(network.state_dict(), file_server.folder / "mine.pth")
    path = with_hash(file_server.folder / "mine.pth")
    for _ in range(2):
        assert same_weights(load_model("resnet18", f"{file_server.url}/{path.name}").network, network)
    assert file_server.requests == [f"/{path.name}"]
    assert (cache / path.name).exists()


def test_two_servers_files_of_one_name_are_two_files(file_server: FileServer) -> None:
    """Without a hash in the name the URL decides: the same name elsewhere is another file."""
    for number, folder in enumerate(("a", "b")):
        (file_server.folder / folder).mkdir()
        state = random_resnet18().state_dict()
        state["fc.bias"].fill_(number)
        save_file(state, file_server.folder / folder / "model.safetensors")
    biases = [
        load_model("resnet18", f"{file_server.url}/{folder}/model.safetensors").network.state_dict()[
            "fc.bias"
        ][0]
        for folder in ("a", "b")
    ]
    assert biases == [0, 1]


def test_a_checkpoint_says_all_that_serving_needs(tmp_path: Path) -> None:
    """A checkpoint of ours brings its network, labels and preprocessing."""
    preprocessing = Preprocessing(40, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    network = NETWORKS["cifar-resnet10"](3)
    state = network.state_dict()
    checkpoint.save_checkpoint(
        checkpoint.Checkpoint("cifar-resnet10", ("a", "b", "c"), preprocessing, state, {"seed": 1}),
        tmp_path / "mine.safetensors",
    )
    model = load_model(str(tmp_path / "mine.safetensors"))
    assert (model.name, model.labels, model.preprocessing) == ("mine", ("a", "b", "c"), preprocessing)
    assert same_weights(model.network, network)
    assert [path.name for path in tmp_path.glob("*mine*")] == ["mine.safetensors"]


def test_a_checkpoint_of_a_torchvision_network(tmp_path: Path) -> None:
    """A fine-tuned torchvision classifier is a checkpoint like any other."""
    preprocessing = Preprocessing(64, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    network = random_resnet18(classes=2)
    state = network.state_dict()
    path = tmp_path / "tuned.safetensors"
    checkpoint.save_checkpoint(checkpoint.Checkpoint("resnet18", ("yes", "no"), preprocessing, state), path)
    assert same_weights(load_model(str(path)).network, network)


def test_the_known_network_has_its_known_size() -> None:
    """ResNet-18 for 32x32 images has 11,173,962 parameters."""
    network = NETWORKS["cifar-resnet18"](10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962


# What cannot


def unavailable(name: str, weights: str | None = None) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model(name, weights)
    message = str(caught.value)
    assert "--model bundled" in message  # a way out is always named
    return message


def test_no_network() -> None:
    """Published weights that cannot be fetched: the message names the URL and the ways out."""
    message = unavailable("resnet18")
    assert ResNet18_Weights.DEFAULT.url in message
    assert "--weights" in message
    assert "hub/checkpoints" in message


@pytest.mark.parametrize("name", ["resnet5O", "resnet", "nonsense"])
def test_an_unknown_name(name: str) -> None:
    """A name that is neither a classifier nor a file is said to be neither, with the nearest names."""
    message = unavailable(name)
    assert "no torchvision classifier" in message
    assert ("did you mean" in message) == (name != "nonsense")


@pytest.mark.parametrize("name", ["missing.safetensors", "folder/missing"])
def test_a_missing_checkpoint(name: str) -> None:
    """A path to nothing says so."""
    assert "there is no file" in unavailable(name)


def test_a_missing_weights_file() -> None:
    """Weights at a path to nothing say so."""
    assert "there is no file" in unavailable("resnet18", "missing.pth")


def test_a_url_that_is_not_there(file_server: FileServer) -> None:
    """A 404 names the URL and the cause."""
    message = unavailable("resnet18", f"{file_server.url}/missing.pth")
    assert "404" in message
    assert "/missing.pth" in message


def test_a_download_with_a_wrong_hash(file_server: FileServer, cache: Path) -> None:
    """A file that does not match the hash in its name is rejected and not kept."""
    torch.save({}, file_server.folder / "net-00000000.pth")
    assert "hash" in unavailable("resnet18", f"{file_server.url}/net-00000000.pth")
    assert not list(cache.glob("*"))


def test_a_broken_download_is_fetched_again(file_server: FileServer) -> None:
    """A file without a hash that turns out broken does not stay in the cache."""
    (file_server.folder / "net.pth").write_bytes(b"half a file")
    url = f"{file_server.url}/net.pth"
    unavailable("resnet18", url)
    network = random_resnet18()
    torch.save(network.state_dict(), file_server.folder / "net.pth")
    assert same_weights(load_model("resnet18", url).network, network)


def test_a_file_with_a_wrong_hash(tmp_path: Path) -> None:
    """A local file is checked against the hash in its name as well."""
    path = tmp_path / "net-00000000.pth"
    torch.save(random_resnet18().state_dict(), path)
    assert "SHA-256" in unavailable("resnet18", str(path))


def test_weights_of_another_shape(tmp_path: Path) -> None:
    """Weights for another number of classes are rejected with both shapes."""
    path = tmp_path / "ten.pth"
    torch.save(random_resnet18(classes=10).state_dict(), path)
    message = unavailable("resnet18", str(path))
    assert "[10, 512]" in message
    assert "[1000, 512]" in message


def test_weights_of_another_network(tmp_path: Path) -> None:
    """Weights with other names are rejected, in a message of bounded length."""
    path = tmp_path / "other.pth"
    torch.save(random_resnet18().state_dict(), path)
    message = unavailable("mobilenet_v3_small", str(path))
    assert "do not fit" in message
    assert len(message) < 2000


class Exploit:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_pickle_never_runs(tmp_path: Path, suffix: str) -> None:
    """A weights file with code in it is rejected, and its code does not run."""
    path, trace = tmp_path / f"evil{suffix}", tmp_path / "trace"
    content = {"fc.weight": Exploit(trace)}
    if suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert "never run" in unavailable("resnet18", str(path))
    assert not trace.exists()


def test_a_pickle_in_the_cache_never_runs(cache: Path, tmp_path: Path) -> None:
    """What lies in the cache under a published name is held to its hash and not trusted either."""
    cache.mkdir(parents=True)
    torch.save({"fc.weight": Exploit(tmp_path / "trace")}, cache / Path(ResNet18_Weights.DEFAULT.url).name)
    assert "damaged" in unavailable("resnet18")
    assert not (tmp_path / "trace").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04", b"PK\x03\x04broken", os.urandom(1000)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_broken_weights_file(tmp_path: Path, content: bytes, suffix: str) -> None:
    """Whatever the bytes, the answer is a clear rejection."""
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    assert str(path) in unavailable("resnet18", str(path))
    if suffix == ".safetensors":
        assert str(path) in unavailable(str(path))


def test_weights_that_are_no_state_dict(tmp_path: Path) -> None:
    """A file of something else than named tensors is said to be no state dict."""
    torch.save([1, 2, 3], tmp_path / "list.pth")
    assert "no state dict" in unavailable("resnet18", str(tmp_path / "list.pth"))


def test_a_bare_state_dict_is_no_checkpoint(tmp_path: Path) -> None:
    """Safetensors without our header cannot be served by path alone."""
    save_file(random_resnet18().state_dict(), tmp_path / "bare.safetensors")
    assert "no checkpoint" in unavailable(str(tmp_path / "bare.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "unheard-of"},
        {"labels": ("only", "two")},
        {"preprocessing": Preprocessing(1, 1, (0, 0, 0), (1, 1, 1)), "network": "vit_b_16"},
    ],
)
def test_a_checkpoint_that_contradicts_itself(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A checkpoint whose header does not fit its weights is rejected."""
    facts = {
        "network": "cifar-resnet10",
        "labels": ("a", "b", "c"),
        "preprocessing": Preprocessing(32, 32, (0, 0, 0), (1, 1, 1)),
        "state": NETWORKS["cifar-resnet10"](3).state_dict(),
    }
    checkpoint.save_checkpoint(checkpoint.Checkpoint(**{**facts, **changes}), tmp_path / "odd.safetensors")
    unavailable(str(tmp_path / "odd.safetensors"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", "[1, 2, 3]"),
        ("labels", '"abc"'),
        ("labels", "[]"),
        ("labels", "[" * 100_000),
        ("preprocessing", "{}"),
        ("preprocessing", "[]"),
        ("preprocessing", '{"resize": 32, "crop": 31.5, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        ("preprocessing", '{"resize": 1e999, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        ("preprocessing", '{"resize": 99999, "crop": 99999, "mean": [0, 0, 0], "std": [1, 1, 1]}'),
        ("preprocessing", '{"resize": 32, "crop": 32, "mean": "abc", "std": [1, 1, 1]}'),
        ("preprocessing", '{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [1, NaN, 1]}'),
        ("preprocessing", '{"resize": 32, "crop": 32, "mean": [0, 0], "std": [1, 1, 1]}'),
        (
            "preprocessing",
            '{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "x"}',
        ),
        ("training", "[]"),
        ("format", "resnet-service/2"),
    ],
)
def test_a_checkpoint_with_a_hostile_header(tmp_path: Path, key: str, value: str) -> None:
    """A header of the wrong types or with absurd numbers stops the start, not the first request."""
    header = {
        "format": checkpoint.FORMAT,
        "network": "cifar-resnet10",
        "labels": '["a", "b", "c"]',
        "preprocessing": '{"resize": 32, "crop": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}',
        "training": "{}",
    }
    path = tmp_path / "odd.safetensors"
    state = NETWORKS["cifar-resnet10"](3).state_dict()
    save_file(state, path, header)
    assert load_model(str(path)).labels == ("a", "b", "c")
    save_file(state, path, {**header, key: value})
    unavailable(str(path))


def test_a_checkpoint_of_nan(tmp_path: Path) -> None:
    """Weights that answer with NaN are rejected at the start."""
    state = NETWORKS["cifar-resnet10"](3).state_dict()
    state["fc.bias"].fill_(float("nan"))
    preprocessing = Preprocessing(32, 32, (0, 0, 0), (1, 1, 1))
    path = tmp_path / "nan.safetensors"
    checkpoint.save_checkpoint(
        checkpoint.Checkpoint("cifar-resnet10", ("a", "b", "c"), preprocessing, state), path
    )
    assert "not numbers" in unavailable(str(path))


@pytest.mark.parametrize(
    "source", ["http://[bad", "http://127.0.0.1:1/mod\u00e8le.pth", "x" * 5000, "/", "a\0b"]
)
def test_sources_that_are_no_sources(source: str) -> None:
    """Whatever is given as a model or as weights, the answer is a clear rejection."""
    unavailable("resnet18", source)
    unavailable(source)


def test_weights_for_a_checkpoint(tmp_path: Path) -> None:
    """Weights beside anything but a torchvision name are a mistake that is named."""
    assert "torchvision" in unavailable("bundled", str(tmp_path / "some.pth"))
