"""Explanations: heat where the class is, for each family of networks, and the errors of those without any."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Final

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from resnet_service.errors import InvalidRequestError, UnsupportedModelError
from resnet_service.explanations import Explainer, Explanation, find_class
from resnet_service.images import Crop, Preprocessing, decode_image
from resnet_service.images.heat_map import draw_heat_map, upscale
from resnet_service.models import Model, load_model
from resnet_service.models.model import ONNXModel, OpenVINOModel
from resnet_service.runtimes.batch_norm import fold_batch_norms
from tests.support import PHOTOGRAPHS
from tests.support.runtimes import create_runtime, probabilities

CPU: Final = torch.device("cpu")
PREPROCESSING: Final = Preprocessing(224, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FAMILIES: Final = {
    "resnet18": 7,
    "mobilenet_v3_small": 7,
    "efficientnet_b0": 7,
    "densenet121": 7,
    "vgg11": 7,
    "squeezenet1_1": 13,
    "convnext_tiny": 7,
    "vit_b_16": 14,
    "swin_t": 7,
}
"""Networks, and the sides of their last grids."""


@pytest.fixture(scope="module")
def crop() -> Crop:
    return decode_image((PHOTOGRAPHS / "dog.jpg").read_bytes(), PREPROCESSING)


def _model(network: nn.Module, preprocessing: Preprocessing = PREPROCESSING, classes: int = 1000) -> Model:
    labels = tuple(f"class {number}" for number in range(classes))
    return Model("random", network.eval(), labels, preprocessing, "random weights")


def _random_network(name: str) -> nn.Module:
    """Return a network of torchvision with random weights, also where the initial ones are zero."""
    torch.manual_seed(0)
    network: nn.Module = torchvision_models.get_model(name, weights=None)
    if isinstance(network, torchvision_models.VisionTransformer):
        nn.init.normal_(network.heads.head.weight, std=0.02)
    return network


@pytest.mark.parametrize(("name", "side"), FAMILIES.items())
def test_network_of_each_family_is_explained(name: str, side: int, crop: Crop) -> None:
    """The heat has the size of the last grid, is finite, from 0 to 1, and not the same everywhere."""
    explanation = Explainer(_model(_random_network(name)), CPU).explain(crop)
    heat = explanation.heat
    assert heat.shape == (side, side)
    assert heat.dtype == np.float32
    assert np.isfinite(heat).all()
    assert (heat.max(), heat.min() >= 0) == (1, True)
    assert heat.std() > 0.01
    assert 0 < explanation.probability <= 1


def test_explaining_does_not_change_what_the_network_returns(crop: Crop) -> None:
    """Tokens and grids that pass through the view reach the next layer as they were."""
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for name in ("vit_b_16", "swin_t", "resnet18"):
        network = _random_network(name).eval()
        with torch.no_grad():
            expected = network(images)
        Explainer(_model(network), CPU).explain(crop)
        with torch.no_grad():
            assert torch.allclose(network(images), expected, atol=1e-5)


def test_heat_is_on_the_dog() -> None:
    """The Samoyed of the photograph is in the left half, and grass is at the right."""
    model = load_model("efficientnet_lite0")
    explanation = Explainer(model, CPU).explain(
        decode_image((PHOTOGRAPHS / "dog.jpg").read_bytes(), model.preprocessing)
    )
    assert model.labels[explanation.class_id] == "Samoyed"
    assert explanation.probability == pytest.approx(0.75, abs=0.05)
    heat = upscale(explanation.heat, 224)
    assert heat[:, :112].mean() > 3 * heat[:, 112:].mean()


def test_hottest_places_matter_more_than_the_coldest(real_images: Path) -> None:
    """Without the hottest fifth of its pixels, an image loses more of its class than without the coldest."""
    model = load_model("efficientnet_lite0")
    explainer = Explainer(model, CPU, threads=1)
    side = model.preprocessing.crop
    changed = list[Crop]()
    explanations = list[Explanation]()
    for path in sorted((real_images / "imagenet-sample").glob("*.JPEG")):
        crop = decode_image(path.read_bytes(), model.preprocessing)
        explanation = explainer.explain(crop)
        order = np.argsort(upscale(explanation.heat, side), axis=None, kind="stable")
        fifth = len(order) // 5
        gray = crop.mean((0, 1)).astype(np.uint8)
        explanations.append(explanation)
        for removed in (order[-fifth:], order[:fifth]):
            pixels = crop.reshape(-1, 3).copy()
            pixels[removed] = gray
            changed.append(pixels.reshape(crop.shape))
    before = np.array([explanation.probability for explanation in explanations])
    classes = [explanation.class_id for explanation in explanations]
    after = probabilities(create_runtime(load_model("efficientnet_lite0"), "torch", "fp32"), changed, 1000)
    losses = before[:, None] - after.numpy().reshape(-1, 2, 1000)[range(len(classes)), :, classes]
    hottest, coldest = losses.T
    assert len(hottest) == 63
    assert hottest.mean() > 5 * coldest.mean()
    assert (hottest > coldest).mean() > 0.8


def test_model_for_small_images_is_explained() -> None:
    """The network for 32 x 32 pixels has a grid of 4 x 4."""
    model = load_model("cifar10")
    crop = decode_image((PHOTOGRAPHS / "dog.jpg").read_bytes(), model.preprocessing)
    explanation = Explainer(model, CPU).explain(crop)
    assert model.labels[explanation.class_id] == "dog"
    assert explanation.heat.shape == (4, 4)


def test_another_class_has_another_heat(crop: Crop) -> None:
    """The class can be chosen; its probability is not more than that of the best one."""
    model = load_model("efficientnet_lite0")
    explainer = Explainer(model, CPU, threads=1)
    best, fence = explainer.explain(crop), explainer.explain(crop, 716)
    assert (fence.class_id, model.labels[fence.class_id]) == (716, "picket fence")
    assert fence.probability < best.probability
    assert not np.allclose(best.heat, fence.heat, atol=0.1)


@pytest.mark.parametrize(
    ("program", "advice"),
    [
        (ONNXModel(b"", "logits", is_quantized=False), "use the model that it was exported from"),
        (OpenVINOModel(b"", b""), "use the model that it was quantized from"),
    ],
    ids=["onnx", "int8"],
)
def test_model_without_gradients_says_what_helps(program: ONNXModel | OpenVINOModel, advice: str) -> None:
    model = Model("fruits", program, ("apple", "pear"), PREPROCESSING, "fruits.onnx")
    with pytest.raises(UnsupportedModelError, match=advice):
        Explainer(model, CPU, threads=1)


def test_network_without_places_names_the_families() -> None:
    """A network that flattens its input first has no layer to explain."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    small = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(UnsupportedModelError, match=r"Sequential cannot be explained.*Vision Transformers"):
        Explainer(_model(network, small, classes=10), CPU)


def test_threads_of_others_stay_as_they_are(crop: Crop) -> None:
    """A limit on the threads of an explanation ends with it."""
    before = torch.get_num_threads()
    Explainer(_model(_random_network("resnet18")), CPU, threads=1).explain(crop)
    assert torch.get_num_threads() == before


def test_explanations_succeed_while_a_network_is_traced(crop: Crop) -> None:
    """torch.fx replaces a method of all networks while it traces one, as each load of a model does."""
    explainer = Explainer(_model(_random_network("resnet18")), CPU)
    network = _random_network("resnet18").eval()
    is_done = Event()

    def trace() -> int:
        count = 0
        while not is_done.is_set():
            fold_batch_norms(network)
            count += 1
        return count

    with ThreadPoolExecutor(1) as threads:
        traced = threads.submit(trace)
        try:
            heats = [explainer.explain(crop).heat for _ in range(5)]
        finally:
            is_done.set()
        assert traced.result(60) > 0
    assert all(np.array_equal(heat, heats[0]) for heat in heats)


LABELS: Final = ("tabby", "Samoyed", "crane", "Pomeranian", "crane")


@pytest.mark.parametrize(
    ("class_id", "label", "expected"), [(None, None, None), (4, None, 4), (None, "samoyed", 1)]
)
def test_class_is_found_by_index_or_label(
    class_id: int | None, label: str | None, expected: int | None
) -> None:
    assert find_class(LABELS, class_id, label) == expected


@pytest.mark.parametrize(
    ("class_id", "label", "message"),
    [
        (5, None, "class_id must be from 0 to 4, got 5"),
        (1, "tabby", "class_id and label exclude each other"),
        (None, "samoyde", "unknown label 'samoyde'; did you mean 'Samoyed'"),
        (None, "quark", "unknown label 'quark'; the model has 5 labels"),
        (None, "Crane", "several classes are called 'crane': use class_id 2, 4"),
    ],
)
def test_unknown_class_is_an_error_with_a_hint(class_id: int | None, label: str | None, message: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        find_class(LABELS, class_id, label)
    assert message in str(error.value)


def test_heat_map_is_lighter_where_it_is_hotter() -> None:
    """Hot places are light and cold ones dark; without opacity, the image stays as it is."""
    crop = np.full((32, 32, 3), 100, np.uint8)
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 16).repeat(16, 0)
    pixels = decode_image(draw_heat_map(crop, heat, 1), Preprocessing(32, 32, (0, 0, 0), (1, 1, 1)))
    luminance = pixels[16] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) >= 0).all()
    assert (luminance[0], luminance[-1]) == pytest.approx((0, 255))
    unchanged = decode_image(draw_heat_map(crop, heat, 0), Preprocessing(32, 32, (0, 0, 0), (1, 1, 1)))
    assert (unchanged == crop).all()
