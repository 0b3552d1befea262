"""Fixtures of the unit tests."""

import urllib.request
from pathlib import Path

import pytest


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache for downloaded weights, and make all hosts but 127.0.0.1 unreachable."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: connections fail at once
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib caches the proxies of its first call
    return tmp_path / "torch" / "hub" / "checkpoints"
