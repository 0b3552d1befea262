"""The hashes of PyTorch's CPU wheels, which are on an index of their own and differ from those on PyPI.

    python -m release.cpu_lock

writes `requirements-cpu.lock` for the versions of torch and torchvision in `requirements.lock`. With these
hashes, `deploy/install_packages.py` installs no other wheels. With --check, the file is not written: the
exit status is 1 if it is not current. The index must be reachable for both.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from release.lock import REPOSITORY, SERVING_LOCK, locked_versions

CPU_LOCK: Final = REPOSITORY / "requirements-cpu.lock"
CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"


class LockError(Exception):
    """The hashes cannot be found, or those in the file are not current."""


def requirements(lock: Path) -> list[str]:
    """Return the requirements for the CPU wheels, such as `torch==2.14.1+cpu`. Raises LockError."""
    versions = locked_versions(lock)
    result = []
    for name in ("torch", "torchvision"):
        if len(versions.get(name, ())) != 1:
            raise LockError(f"{lock} needs one version of {name}")
        [version] = versions[name]
        result.append(f"{name}=={version}+cpu")
    return result


def cpu_lock(lock: Path, index: str) -> str:
    """Return the text of the lock file for the wheels of `index`. Raises LockError."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "requirements.in")
        source.write_text("\n".join(requirements(lock)), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--no-annotate"]
        options = ["--universal", "--python-version", "3.11", "--no-deps", "--only-binary", ":all:"]
        result = subprocess.run(
            [*command, *options, "--generate-hashes", "--default-index", index, "--no-header", str(source)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        raise LockError(result.stderr)
    if missing := re.findall(r"^(\S+==\S+)$", result.stdout, re.MULTILINE):
        raise LockError(f"{index} has no hashes for {', '.join(missing)}")
    return f"# The hashes of PyTorch's CPU wheels, by `make lock-cpu`.\n{result.stdout}"


@click.command()
@click.option("--index", default=CPU_INDEX, show_default=True, help="Package index with the CPU wheels.")
@click.option("--output", default=CPU_LOCK, type=click.Path(path_type=Path), help="File to write or check.")
@click.option("--check", is_flag=True, help="Compare the file with the index instead of writing it.")
def main(index: str, output: Path, check: bool) -> None:
    """Write the lock file of PyTorch's CPU wheels."""
    try:
        text = cpu_lock(SERVING_LOCK, index)
    except LockError as error:
        sys.exit(str(error))
    if not check:
        output.write_text(text, encoding="utf-8")
    elif output.read_text(encoding="utf-8") != text:
        sys.exit(f"{output.name} is not current: run make lock-cpu")


if __name__ == "__main__":
    main()
