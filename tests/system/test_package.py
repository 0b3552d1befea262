"""The wheel: what it contains, and that it works outside the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support import REPOSITORY
from tests.support.processes import events, until


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(REPOSITORY),
    ]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment that has the wheel, and this environment's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site_packages = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    # Path files are not followed from here on, so the editable install of this environment does not count.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    return python


def test_wheel_contains_only_the_package(wheel: Path) -> None:
    """No other top-level name is installed, and the data files of the package are included."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"resnet_service"}
    assert "resnet_service/py.typed" in names
    assert "resnet_service/models/bundled/cifar10.safetensors" in names


def test_client_of_the_wheel_imports_without_torch(python: Path, tmp_path: Path) -> None:
    """Outside the checkout the client comes from the wheel, and PyTorch is not loaded."""
    code = (
        "import sys, resnet_service; from resnet_service.client import Client; "
        "assert 'torch' not in sys.modules; print(resnet_service.__file__)"
    )
    result = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).is_relative_to(python.parent.parent)


def test_wheel_serves(python: Path, photo: bytes, tmp_path: Path) -> None:
    """The service of the wheel classifies a photograph of a cat."""
    options = ("--model", "cifar10", "--port", "0", "--management-port", "0", "--log-format", "json")
    command = [str(python), "-m", "resnet_service", "serve", *options]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = events(process)
            url = until(log, "serving")["url"]
            until(log, "ready")
            response = httpx.post(f"{url}/predict", files={"file": photo}, timeout=30)
        finally:
            process.kill()
    assert response.json()["predictions"][0]["label"] == "cat"
