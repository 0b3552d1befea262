"""Settings of `resnet-service serve`, and the exit status of a service that cannot start."""

import socket
from pathlib import Path

import pytest

from resnet_service.settings import Settings
from tests.support.processes import rejected


def test_port_in_use_exits_with_status_1() -> None:
    """The error message says that the address is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert "in use" in rejected("--model", "bundled", "--port", port, status=1)


def test_unavailable_model_exits_with_status_3(tmp_path: Path) -> None:
    """If the weights cannot be downloaded, the error message lists the alternatives."""
    message = rejected(
        *("--model", "resnet50", "--port", "0"),
        status=3,
        TORCH_HOME=str(tmp_path),
        https_proxy="http://127.0.0.1:9",
        no_proxy="",
    )
    assert "cannot load the model 'resnet50'" in message
    assert "--model bundled" in message
    assert "--weights" in message


def test_unavailable_device_exits_with_status_3() -> None:
    """A requested device that does not exist stops the start, and the error message names it."""
    message = rejected("--model", "bundled", "--device", "cuda:99", status=3)
    assert "cuda" in message


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--port", "http"], "port"),
        (["--max-batch", "0"], "max_batch"),
        (["--max-megapixels", "inf"], "max_megapixels"),
        (["--precision", "int3"], "precision"),
        (["--unknown-option", "1"], "--unknown-option"),
    ],
)
def test_invalid_setting_exits_with_status_2(flags: list[str], name: str) -> None:
    """An invalid setting is a usage error that names the setting."""
    assert name in rejected(*flags, status=2)


def test_invalid_environment_variable_exits_with_status_2() -> None:
    """The same applies to a setting from the environment."""
    assert "max_queue" in rejected(status=2, RESNET_SERVICE_MAX_QUEUE="none")


def test_option_overrides_environment_variable(tmp_path: Path) -> None:
    """A setting is taken from the environment unless the command line has it."""
    message = rejected(
        "--model", str(tmp_path / "flag.safetensors"), status=3, RESNET_SERVICE_MODEL="variable"
    )
    assert "flag.safetensors" in message
    assert "variable" not in message
    assert "variable" in rejected(status=3, RESNET_SERVICE_MODEL="variable")


def test_empty_environment_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, which compose files create for a missing one, leaves the default in place."""
    monkeypatch.setenv("RESNET_SERVICE_WEIGHTS", "")
    monkeypatch.setenv("RESNET_SERVICE_PORT", "")
    settings = Settings()
    assert settings.weights is None
    assert settings.port == 8000
