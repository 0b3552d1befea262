"""Models by name: the model cifar10, torchvision's classifiers, and names that cannot be loaded."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights, SqueezeNet1_1_Weights, densenet121

from resnet_service.images import Preprocessing, decode_image
from resnet_service.models import catalog, checkpoint, load_model, weights_path
from resnet_service.models.checkpoint import load_checkpoint
from resnet_service.models.networks import NETWORKS
from tests.support.file_server import FileServer
from tests.support.models import CLASSIFIER, PublishFn, load_error, random_classifier, same_weights

pytestmark = pytest.mark.usefixtures("torch_cache")


def test_cifar10_loads_offline() -> None:
    """The model cifar10 is small, needs no cache and no network, and is in eval mode."""
    model = load_model("cifar10")
    assert set(model.labels) == {
        *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    }
    assert weights_path("cifar10").stat().st_size < 25_000_000
    assert not model.network.training


def test_cifar10_has_a_model_card() -> None:
    """The card beside the weights documents network, data, epochs, seed, accuracy and hardware."""
    card = weights_path("cifar10").with_suffix(".md").read_text(encoding="utf-8")
    cifar10 = load_checkpoint(weights_path("cifar10"))
    accuracy = cifar10.training["accuracy"]
    assert accuracy >= 0.94
    for fact in (cifar10.network, f"{accuracy:.2%}", "Seed", "Epochs", "Hardware"):
        assert fact in card


def test_cifar10_classifies_a_photograph_of_a_cat(photo: bytes) -> None:
    """The best class of a photograph, far larger than the images of CIFAR-10, is correct."""
    model = load_model("cifar10")
    crop = torch.tensor(decode_image(photo, model.preprocessing)).permute(2, 0, 1)
    mean = torch.tensor(model.preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(model.preprocessing.std).view(3, 1, 1)
    with torch.inference_mode():
        logits = model.network(((crop / 255 - mean) / std)[None])
    assert model.labels[int(logits.argmax())] == "cat"


def test_cifar_resnet18_has_the_documented_size() -> None:
    """ResNet-18 for 32x32 images has 11,173,962 parameters."""
    network = NETWORKS["cifar-resnet18"](10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962


def test_published_model_has_its_labels_and_preprocessing(
    file_server: FileServer, torch_cache: Path, publish: PublishFn
) -> None:
    """A torchvision name is downloaded once to PyTorch's cache, with its weights' labels and preprocessing.

    The URL of the weights is replaced by that of a local file server.
    """
    network = random_classifier()
    file = file_server.folder / "published.pth"
    torch.save(network.state_dict(), file)
    file = file.rename(file.with_stem(f"published-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"))
    publish(CLASSIFIER, f"{file_server.url}/{file.name}")
    for _ in range(2):
        model = load_model(CLASSIFIER)
        assert same_weights(model.network, network)
    assert file_server.requests == [f"/{file.name}"]
    assert weights_path(CLASSIFIER) == torch_cache / file.name
    assert (torch_cache / file.name).exists()
    assert model.labels == tuple(SqueezeNet1_1_Weights.DEFAULT.meta["categories"])
    assert model.preprocessing == Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_resnet50_uses_the_default_weights() -> None:
    """`resnet50` uses ResNet50_Weights.DEFAULT, which resizes to 232 pixels; the first version uses 256."""
    spec = catalog.get_spec("resnet50")
    assert spec.source == ResNet50_Weights.IMAGENET1K_V2.url
    assert (spec.preprocessing.resize, spec.preprocessing.crop) == (232, 224)
    assert len(spec.labels) == 1000


def test_each_torchvision_classifier_has_a_spec() -> None:
    """Each classifier has labels and preprocessing for each set of its published weights."""
    assert {"resnet152", "mobilenet_v3_small", "vit_b_16"} <= set(catalog.model_names())
    for name in catalog.model_names():
        for weights in catalog.published_weights(name):
            spec = catalog.get_spec(name, weights)
            assert len(spec.labels) == 1000
            assert spec.preprocessing.crop <= spec.preprocessing.resize


def test_keys_of_published_densenet_weights_are_converted() -> None:
    """The published densenet files name the layers as an older version of PyTorch did."""
    with torch.device("meta"):  # keys without values
        state = densenet121().state_dict()
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in state.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    assert catalog.get_spec("densenet121").convert_state_dict(published).keys() == state.keys()


def test_unreachable_download_names_url_and_alternatives() -> None:
    """If published weights cannot be downloaded, the message contains the URL and alternatives."""
    message = load_error("resnet18")
    assert catalog.get_spec("resnet18").source in message
    assert "--weights" in message
    assert "hub/checkpoints" in message


@pytest.mark.parametrize("name", ["resnet5O", "resnet", "nonsense"])
def test_unknown_name_suggests_similar_names(name: str) -> None:
    """A name that is neither a classifier nor a file is rejected with similar names, if any."""
    message = load_error(name)
    assert "neither a torchvision classifier nor a file" in message
    assert ("did you mean" in message) == (name != "nonsense")


@pytest.mark.parametrize(
    "source", ["http://[bad", "http://127.0.0.1:1/mod\u00e8le.pth", "x" * 5000, "/", "a\0b"]
)
def test_invalid_sources_are_rejected(source: str) -> None:
    """Invalid URLs and paths raise ModelLoadError, as a model and as weights."""
    load_error(CLASSIFIER, source)
    load_error(source)


def test_weights_of_cifar10_are_rejected(tmp_path: Path) -> None:
    """Weights can be set only for torchvision classifiers."""
    assert "torchvision" in load_error("cifar10", str(tmp_path / "some.pth"))


@pytest.mark.parametrize(
    ("name", "weights", "attempt", "alternatives"),
    [
        ("cifar10", "some.pth", "--model cifar10", ["FILE.safetensors", "resnet50", "without --weights"]),
        ("some.safetensors", None, "FILE.safetensors", ["--model cifar10", "resnet50"]),
        ("nonsense", None, "--weights", ["--model cifar10", "FILE.safetensors", "resnet50"]),
        (CLASSIFIER, None, "without --weights", ["--model cifar10", "--weights FILE or URL", "copy"]),
        (CLASSIFIER, "some.pth", "--model cifar10", ["without --weights"]),
        (CLASSIFIER, "http://127.0.0.1:9/x.pth", "or URL", ["--weights FILE", "HTTPS_PROXY"]),
    ],
    ids=["cifar10", "file", "unknown", "download", "weights", "URL"],
)
@pytest.mark.usefixtures("torch_cache")
def test_alternatives_do_not_contain_what_was_tried(
    name: str, weights: str | None, attempt: str, alternatives: list[str]
) -> None:
    listed = load_error(name, weights).split("Alternatives:")[1]
    assert attempt not in listed
    assert [text for text in alternatives if text not in listed] == []


def test_file_that_is_not_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    """Neither the text of a validator nor the name of an exception is in the message."""
    notes, other = tmp_path / "notes.jpg", tmp_path / "other.safetensors"
    notes.write_text("not a checkpoint")
    save_file({"x": torch.zeros(1)}, other, {"format": checkpoint.FORMAT, "network": "lenet", "labels": "1"})
    for path, reason in ((notes, "Error while deserializing header"), (other, "its metadata is invalid")):
        [line, *_] = load_error(str(path)).splitlines()
        assert f"{path} is not a readable checkpoint: {reason}" in line
        assert "Error(" not in line
