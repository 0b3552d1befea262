"""The model `auto`, and random weights where published ones cannot be downloaded."""

import json
import socket
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from resnet_service.cli import main
from resnet_service.models import ModelSource, choose_model, load_model_or_random, weights
from tests.support import PHOTOGRAPHS
from tests.support.file_server import FileServer
from tests.support.models import CLASSIFIER, PublishFn, random_classifier, same_weights

pytestmark = pytest.mark.usefixtures("torch_cache")


def test_without_a_network_auto_is_the_installed_model() -> None:
    choice = choose_model("auto")
    assert choice.name == "efficientnet_lite0"
    assert choice.reason == (
        "the weights of resnet50 cannot be downloaded: download.pytorch.org could not be reached"
    )


def test_auto_is_resnet50_if_its_weights_can_be_downloaded_or_are_cached(
    file_server: FileServer, publish: PublishFn, torch_cache: Path
) -> None:
    (file_server.folder / "resnet50.pth").write_bytes(b"weights")
    publish("resnet50", f"{file_server.url}/resnet50.pth")
    downloaded, cached = choose_model("auto"), choose_model("auto")
    assert (downloaded.name, cached.name) == ("resnet50", "resnet50")
    assert downloaded.reason == "its published weights were downloaded"
    assert str(torch_cache) in str(cached.reason)
    assert file_server.requests == ["/resnet50.pth"]


def test_server_that_does_not_respond_is_not_waited_for(
    publish: PublishFn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is accepted and nothing is sent: the wait has a limit, here 0.1 s."""
    monkeypatch.setattr(weights, "CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        publish("resnet50", f"http://{address}/resnet50.pth")
        choice = choose_model("auto")
    assert choice.name == "efficientnet_lite0"
    assert f"{address} did not respond within 0.1 s" in str(choice.reason)


@pytest.mark.parametrize("exists", [True, False], ids=["interrupted", "missing"])
def test_failed_download_is_the_reason(file_server: FileServer, publish: PublishFn, exists: bool) -> None:
    if exists:
        (file_server.folder / "resnet50.pth").write_bytes(bytes(1000))
        file_server.breaks_connections = True
    publish("resnet50", f"{file_server.url}/resnet50.pth")
    choice = choose_model("auto")
    assert choice.name == "efficientnet_lite0"
    assert ("could not be downloaded" if exists else "404") in str(choice.reason)


def test_weights_select_resnet50() -> None:
    assert choose_model(ModelSource("auto", "mine.pth")).name == "resnet50"


def test_name_stands_for_itself() -> None:
    choice = choose_model("mobilenet_v3_small")
    assert (choice.name, choice.reason) == ("mobilenet_v3_small", None)


@pytest.mark.parametrize("name", ["resnet152", "vit_b_16", CLASSIFIER])
def test_random_weights_give_moderate_outputs(name: str) -> None:
    """Values fit into fp16, whose largest is 65,504."""
    model, reason = load_model_or_random(name)
    assert reason == "its weights cannot be downloaded: download.pytorch.org could not be reached"
    assert model.source == "random weights"
    size = model.preprocessing.crop
    with torch.inference_mode():
        output = model.network(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)))
    assert output.shape == (1, 1000)
    assert output.abs().max() < 1000


def test_available_weights_are_not_replaced(
    file_server: FileServer, publish: PublishFn, tmp_path: Path
) -> None:
    """Published ones, and a file that the user names; an error of the latter is reported."""
    path = file_server.folder / "weights.pth"
    torch.save(random_classifier().state_dict(), path)
    publish(CLASSIFIER, f"{file_server.url}/weights.pth")
    for source in (None, str(path)):
        model, reason = load_model_or_random(ModelSource(CLASSIFIER, source))
        assert reason is None
        assert same_weights(model.network, random_classifier())
    with pytest.raises(Exception, match="file not found"):
        load_model_or_random(ModelSource(CLASSIFIER, str(tmp_path / "missing.pth")))


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "--model", CLASSIFIER, "--batch-sizes", "1", "--iterations", "1"),
        ("bench", "--model", CLASSIFIER, "--end-to-end", "4", "--batch-size", "2"),
        ("compare", str(PHOTOGRAPHS), "--model", f"{CLASSIFIER},efficientnet_lite0"),
        ("inspect", "--model", CLASSIFIER),
    ],
    ids=["bench", "end-to-end", "compare", "inspect"],
)
def test_measurements_need_no_download(arguments: tuple[str, ...]) -> None:
    """The output says that weights are random, except that of `inspect`, which needs none."""
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[0])
    message = f"{CLASSIFIER} has random weights, which changes its results, not its speed"
    assert (message in result.stderr) == (arguments[0] != "inspect")


def test_choice_of_auto_is_printed_with_its_reason() -> None:
    """On standard error: standard output contains only the results."""
    arguments = ["classify", "--model", "auto", "--json", str(PHOTOGRAPHS / "dog.jpg")]
    result = CliRunner().invoke(main, arguments)
    assert json.loads(result.stdout)["predictions"][0]["label"] == "Samoyed"
    assert "model efficientnet_lite0: the weights of resnet50 cannot be downloaded" in result.stderr
