"""The model `auto` in the service, with a local file server in place of download.pytorch.org."""

import hashlib
from pathlib import Path

import httpx
import pytest
import torch
from pydantic import SecretStr
from torchvision.models import resnet50

from resnet_service.models import catalog
from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS
from tests.support.file_server import FileServer
from tests.support.models import PublishFn
from tests.support.server import serving

ADMIN = "a" * 16
DOG = PHOTOGRAPHS / "dog.jpg"


def auto_settings() -> Settings:
    return Settings(model="auto", api_keys=SecretStr(f"{ADMIN} admin"), public_scopes="predict,metrics,bench")


def classify(url: str) -> str:
    """Return the model that classifies a photograph."""
    response = httpx.post(f"{url}/predict", files={"file": DOG.read_bytes()}, timeout=60)
    return str(response.raise_for_status().json()["model"])


def test_auto_serves_resnet50_if_the_hub_can_be_reached(
    file_server: FileServer, publish: PublishFn, torch_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file has random weights and the hash of its name. The log has the reason."""
    torch.manual_seed(0)
    file = file_server.folder / "resnet50.pth"
    torch.save(resnet50().state_dict(), file)
    file = file.rename(file.with_stem(f"resnet50-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"))
    publish("resnet50", f"{file_server.url}/{file.name}")
    with serving(auto_settings()) as service:
        assert classify(service.url) == "resnet50"
        assert httpx.get(f"{service.url}/info").json()["model"] == "resnet50"
    assert list(torch_cache.rglob(file.name))
    assert "its published weights were downloaded" in capsys.readouterr().out


def test_reload_keeps_the_model(torch_cache: Path) -> None:
    """`auto` chose efficientnet_lite0 without a hub; weights of ResNet-50 that appear later do not count."""
    with serving(auto_settings()) as service:
        assert classify(service.url) == "efficientnet_lite0"
        torch_cache.mkdir(parents=True, exist_ok=True)
        (torch_cache / Path(catalog.get_spec("resnet50").source).name).write_bytes(b"weights")
        headers = {"Authorization": f"Bearer {ADMIN}"}
        httpx.post(f"{service.url}/reload", headers=headers, timeout=60).raise_for_status()
        assert classify(service.url) == "efficientnet_lite0"
