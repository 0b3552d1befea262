"""Install the packages of a lock file, with PyTorch's CPU wheels on Linux without an NVIDIA GPU.

    .venv/bin/python deploy/install_packages.py requirements.lock
    .venv/bin/python deploy/install_packages.py --extras ray requirements-dev.lock

On Linux, PyTorch's wheels on PyPI need CUDA's libraries: 4.1 of the 5.8 GB of an installation. A machine
without an NVIDIA GPU does not use them, so torch and torchvision come from PyTorch's index of CPU wheels,
in the versions of the lock file. Their hashes are those of `requirements-cpu.lock`, in the same folder; if
it has none, they are installed by version, with a warning. All other packages are installed exactly as
locked. If that index cannot be reached, the wheels of the default index are installed.

The variable TORCH_INDEX is the URL of another index; if it is empty, the default index is used.

With --extras, the project in the current directory is installed with these extras, in the versions of the
lock file. Uses only the standard library: it runs before anything is installed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"

_TIMEOUT_S: Final = 10.0
_TORCH: Final = re.compile(r"(torch|torchvision)==\S+")
_CUDA: Final = re.compile(r"(triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==")
"""Packages that only the CUDA wheels of PyTorch need."""


def main() -> None:
    """Install the packages into the environment of this Python."""
    parser = argparse.ArgumentParser(description="Install the packages of a lock file.")
    parser.add_argument("lock", type=Path, help="lock file with hashes")
    parser.add_argument(
        "--require-index", action="store_true", help="fail if PyTorch's index cannot be reached"
    )
    parser.add_argument("--extras", help="install only these extras of the project, separated by commas")
    arguments = parser.parse_args()
    if arguments.extras:
        install_extras(arguments.lock, arguments.extras)
        return
    index = choose_index(required=arguments.require_index)
    if index:
        install_with_index(arguments.lock, index)
    else:
        install("--require-hashes", "--requirement", str(arguments.lock))


def choose_index(*, required: bool) -> str:
    """Return the URL of the index for PyTorch; empty for pip's default index."""
    index = os.environ.get("TORCH_INDEX")
    if index is None:
        if sys.platform != "linux" or has_nvidia_gpu():
            return ""
        index = CPU_INDEX
    if not index or required:
        return index
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=_TIMEOUT_S):
            return index
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        print(f"{index} cannot be reached ({reason}): installing PyTorch with CUDA, which needs 4 GB more")
        return ""


def has_nvidia_gpu() -> bool:
    """Return whether the machine has an NVIDIA GPU with a driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def install_with_index(lock: Path, index: str) -> None:
    """Install torch and torchvision from `index`, and the rest of the lock file without CUDA's libraries.

    Ends with an error if `requirements-cpu.lock` has other versions, or a wheel another hash.
    """
    # A requirement begins in the first column; its hashes and comments are indented.
    requirements = re.split(r"\n(?=[a-z0-9])", lock.read_text(encoding="utf-8"), flags=re.IGNORECASE)
    torch = [match[0] for match in map(_TORCH.match, requirements) if match]
    rest = [text for text in requirements if not _TORCH.match(text) and not _CUDA.match(text)]
    hashes = lock.with_name("requirements-cpu.lock")
    text = hashes.read_text(encoding="utf-8") if hashes.exists() else ""
    locked = re.findall(r"^(\S+==\S+?)\+cpu ", text, re.MULTILINE)
    if not locked:
        print(f"{hashes.name} has no hashes: {', '.join(torch)} from {index} are installed by version")
        install("--index-url", index, "--no-deps", *torch)
    elif sorted(locked) != sorted(torch):
        expected, found = ", ".join(torch), ", ".join(locked)
        sys.exit(f"{lock.name} has {expected}, and {hashes.name} has {found}: run make lock-cpu")
    else:
        install("--index-url", index, "--no-deps", "--require-hashes", "--requirement", str(hashes))
    install("--no-deps", "--require-hashes", "--requirement", "/dev/stdin", text="\n".join(rest))


def install_extras(lock: Path, extras: str) -> None:
    """Install the project with `extras`; what is installed already keeps its version."""
    text = lock.read_text(encoding="utf-8")
    versions = re.findall(r"^[a-z0-9][^\\\n]*", text, re.MULTILINE | re.IGNORECASE)
    install("--constraint", "/dev/stdin", "--editable", f".[{extras}]", text="\n".join(versions))


def install(*arguments: str, text: str | None = None) -> None:
    """Run `pip install`, with its progress bar, and end with its status if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    status = subprocess.run(command, input=text, text=True, check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
