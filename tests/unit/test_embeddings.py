"""Embeddings of all runtimes: the input of the classifier, as torchvision's feature extraction returns it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models as torchvision_models
from torchvision import transforms
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from resnet_service.errors import InferenceError
from resnet_service.images import Crop, Preprocessing, decode_image
from resnet_service.images.examples import example_photographs
from resnet_service.machine import has_native_bf16
from resnet_service.models import Model, load_model
from resnet_service.models.networks import NETWORKS
from resnet_service.runtimes import Runtime, TopKResult
from resnet_service.runtimes.selection import RuntimeName
from tests.support.runtimes import create_runtime

CLASSES = 10
RUNTIMES: list[RuntimeName] = ["torch", "openvino"]
TRAINED = "efficientnet_lite0"

NETWORK_FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision_models.resnet18(num_classes=CLASSES),
    "mobilenet_v3_small": lambda: torchvision_models.mobilenet_v3_small(num_classes=CLASSES),
    "densenet121": lambda: torchvision_models.densenet121(num_classes=CLASSES),
    "vit": lambda: torchvision_models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=CLASSES),
    "lenet": lambda: NETWORKS["lenet"](CLASSES),
}


def model_of(network: nn.Module, side: int = 64) -> Model:
    preprocessing = Preprocessing(side, side, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Model("random", network.eval(), tuple("abcdefghij"), preprocessing, "random weights")


def random_model(name: str) -> Model:
    torch.manual_seed(0)
    return model_of(NETWORK_FACTORIES[name]())


def photographs(model: Model) -> list[Crop]:
    return [decode_image(data, model.preprocessing) for data in example_photographs().values()]


def expected_embeddings(model: Model, crops: list[Crop]) -> torch.Tensor:
    """Return the output of the last node before the classifier, of PyTorch's network."""
    _, names = get_graph_node_names(model.network)
    assert isinstance(dict(model.network.named_modules())[names[-1]], nn.Linear)
    extractor = create_feature_extractor(model.network, {names[-2]: "embedding"})
    normalize = transforms.Normalize(model.preprocessing.mean, model.preprocessing.std)
    images = torch.stack([normalize(transforms.functional.to_tensor(crop)) for crop in crops])
    with torch.inference_mode():
        result: torch.Tensor = extractor(images)["embedding"]
    return result


def embeddings(runtime: Runtime, crops: list[Crop]) -> torch.Tensor:
    values: npt.NDArray[np.float32] | None = runtime.run(crops, 1, with_embeddings=True).embedding
    assert values is not None
    assert values.dtype == np.float32
    assert values.shape == (len(crops), runtime.embedding_size)
    return torch.from_numpy(values)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """Return the networks, which the runtimes share, and one with its published weights."""
    random = {name: random_model(name) for name in NETWORK_FACTORIES}
    return random | {TRAINED: load_model(TRAINED)}


@pytest.fixture(scope="module")
def cifar10() -> Model:
    """Return the trained model of the package."""
    return load_model("cifar10")


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        *((name, "torch") for name in (*NETWORK_FACTORIES, TRAINED)),
        *(
            (name, "openvino") for name in ("mobilenet_v3_small", "vit", TRAINED)
        ),  # others take long to convert
    ],
)
def test_embedding_equals_feature_extraction(
    models: dict[str, Model], name: str, runtime: RuntimeName
) -> None:
    """In fp32, embeddings differ from those of torchvision by less than 1e-4 of the largest value."""
    model = models[name]
    crops = photographs(model)
    expected = expected_embeddings(model, crops)
    actual = embeddings(create_runtime(model, runtime, "fp32"), crops)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_embedding_in_bf16_has_the_same_direction(cifar10: Model, runtime: RuntimeName) -> None:
    """In bf16, the cosine similarity to fp32 is above 0.999."""
    if runtime == "openvino" and not has_native_bf16():
        pytest.skip("this CPU has no native bf16, which OpenVINO requires")
    crops = photographs(cifar10)
    actual = embeddings(create_runtime(cifar10, runtime, "bf16"), crops)
    assert functional.cosine_similarity(actual, expected_embeddings(cifar10, crops)).min() > 0.999


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_embeddings_do_not_change_the_classes(cifar10: Model, runtime: RuntimeName) -> None:
    """A batch has the same probabilities with and without embeddings, and no embeddings unless requested."""
    crops, executor = photographs(cifar10), create_runtime(cifar10, runtime, "fp32")
    with_embeddings, without = executor.run(crops, 10, with_embeddings=True), executor.run(crops, 10)
    assert without.embedding is None
    assert np.array_equal(with_embeddings.class_ids, without.class_ids)
    assert np.array_equal(with_embeddings.probabilities, without.probabilities)
    for row, image in zip(embeddings(executor, crops), with_embeddings.images(), strict=True):
        assert torch.equal(torch.from_numpy(image.embedding), row)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_network_without_a_linear_classifier_has_no_embedding(runtime: RuntimeName) -> None:
    """SqueezeNet's last layer is a convolution: it has no embedding, and classifies as before."""
    torch.manual_seed(0)
    model = model_of(torchvision_models.squeezenet1_1(num_classes=CLASSES))
    executor = create_runtime(model, runtime, "fp32")
    assert executor.embedding_size is None
    result = executor.run(photographs(model), 1, with_embeddings=True)
    assert result.embedding is None
    assert all(image.embedding is None for image in result.images())


def test_embedding_of_functional_linear_layer() -> None:
    """A classifier that is a call of `functional.linear`, as in subclasses of nn.Linear, has an embedding."""

    class OwnLinear(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return functional.linear(input, self.weight, self.bias)

    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), OwnLinear(12, CLASSES), nn.Dropout())
    model = model_of(network)
    crops = photographs(model)
    executor = create_runtime(model, "torch", "fp32")
    assert executor.embedding_size == 12
    torch.testing.assert_close(embeddings(executor, crops), embeddings_of_openvino(model, crops))


def embeddings_of_openvino(model: Model, crops: list[Crop]) -> torch.Tensor:
    return embeddings(create_runtime(model, "openvino", "fp32"), crops)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", ["vit", "lenet"])
def test_embedding_of_an_onnx_file(models: dict[str, Model], name: str, runtime: RuntimeName) -> None:
    """A network that was exported to ONNX has the same embeddings on both runtimes."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="requires the extra onnx")
    from resnet_service.models.onnx_export import export_onnx

    model = models[name]
    crops = photographs(model)
    expected = expected_embeddings(model, crops)
    actual = embeddings(create_runtime(export_onnx(model), runtime, "fp32"), crops)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_deep_network_has_an_embedding() -> None:
    """Deeper than Python's limit on recursion."""
    layers = [nn.Hardtanh() for _ in range(1500)]
    model = model_of(nn.Sequential(nn.Flatten(), *layers, nn.Linear(3 * 8 * 8, CLASSES)), side=8)
    assert create_runtime(model, "openvino", "fp32").embedding_size == 3 * 8 * 8


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_embedding_of_a_graph_in_fp16_is_fp32(tmp_path: Path, runtime: RuntimeName) -> None:
    """A graph whose input and output are fp32 can have fp16 layers."""
    pytest.importorskip("onnxruntime", reason="requires the extra onnx")
    from onnx import TensorProto, helper, numpy_helper

    from tests.support.onnx import SIZE, small_graph, write

    proto = small_graph()
    graph = proto.graph
    size, classes = SIZE, 2
    weights = np.random.default_rng(0).normal(size=(3 * size * size, classes)).astype(np.float16)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, size, size])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", classes])
    for entries in (graph.node, graph.initializer, graph.input, graph.output):
        del entries[:]
    graph.input.append(image)
    graph.output.append(output)
    graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    graph.node.extend(
        [
            helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Flatten", ["half"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["product"]),
            helper.make_node("Cast", ["product"], ["output"], to=TensorProto.FLOAT),
        ]
    )
    model = load_model(str(write(tmp_path / "half.onnx", proto)))
    crops = [np.full((size, size, 3), level, np.uint8) for level in (0, 255)]
    values = embeddings(create_runtime(model, runtime, "fp32"), crops)
    assert values.shape == (2, 3 * size * size)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_graph_without_a_product_before_its_output_has_no_embedding(
    tmp_path: Path, runtime: RuntimeName
) -> None:
    """An ONNX graph whose logits are no matrix product is served without embeddings."""
    pytest.importorskip("onnxruntime", reason="requires the extra onnx")
    from onnx import helper

    from tests.support.onnx import small_graph, write

    proto = small_graph()
    assert (
        create_runtime(load_model(str(write(tmp_path / "a.onnx", proto))), runtime, "fp32").embedding_size
        == 3
    )
    proto.graph.node[-1].CopyFrom(helper.make_node("Relu", ["logits"], ["output"]))
    assert (
        create_runtime(load_model(str(write(tmp_path / "b.onnx", proto))), runtime, "fp32").embedding_size
        is None
    )


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_embedding_of_a_quantized_model_has_the_same_direction(cifar10: Model, runtime: RuntimeName) -> None:
    """In int8, the cosine similarity to fp32 is above 0.98; the files of quantized models have one output."""
    pytest.importorskip("nncf", reason="requires the extra quantize")
    from resnet_service.models.onnx_export import export_onnx
    from resnet_service.runtimes.quantization import quantize, quantize_onnx

    crops = photographs(cifar10)
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="requires the extra onnx")
        quantized = quantize_onnx(export_onnx(cifar10), np.stack(crops)).model
    else:
        quantized = quantize(cifar10, np.stack(crops)).model
        assert quantized.openvino_model is not None
        assert quantized.openvino_model.topology.count(b'type="Result"') == 1
    actual = embeddings(create_runtime(quantized, runtime, "int8"), crops)
    assert functional.cosine_similarity(actual, expected_embeddings(cifar10, crops)).min() > 0.98


def test_embedding_that_is_not_finite_is_an_error() -> None:
    """An embedding that overflows is an error of the inference, as a probability is."""
    result = TopKResult(
        np.zeros(1, np.int64), np.ones(1, np.float32), np.float32(0), "cpu", np.array([1, np.inf], np.float32)
    )
    with pytest.raises(InferenceError, match="not finite"):
        result.top(1)
