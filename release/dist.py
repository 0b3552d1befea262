"""Build the source distribution and the wheel, so that anybody can build the same bytes from the same commit.

    python -m release.dist dist

builds both twice, in folders that differ in path, umask, time zone, and order and times of their files, and
compares the bytes. The files are those of the last commit, so that nothing uncommitted gets into a release.
Hatchling sorts the files of an archive, and gives all one time, SOURCE_DATE_EPOCH, and one mode. Its version,
which is part of a wheel's metadata, is that of the lock file. Needs git; no package index is used.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from release.lock import REPOSITORY


class BuildError(Exception):
    """A build failed, or two builds of the same commit differ."""


def commit_time() -> int:
    """Return SOURCE_DATE_EPOCH, by default the time of the last commit, in seconds since 1970."""
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(epoch)
    return int(_git("log", "-1", "--format=%ct"))


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout


def export(folder: Path, *, reverse: bool = False) -> None:
    """Write the files of the last commit to `folder`; with `reverse`, last file first."""
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=BytesIO(_git("archive", "HEAD"))) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
        archive.extractall(
            folder, sorted(members, key=lambda member: member.name, reverse=reverse), filter="data"
        )


def build(source: Path, output: Path, *, umask: int = 0o022, timezone: str = "UTC") -> dict[str, str]:
    """Build both distributions of `source` into `output`; return the SHA-256 of each file by its name.

    Raises BuildError.
    """
    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(output)],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(commit_time()), "TZ": timezone},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=umask,
        check=False,
    )
    if result.returncode:
        raise BuildError(result.stdout)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.iterdir())}


def main(output: Path) -> None:
    """Build twice, compare, and write both distributions and SHA256SUMS to `output`. Raises BuildError."""
    with tempfile.TemporaryDirectory() as first_folder, tempfile.TemporaryDirectory() as second_folder:
        first, second = Path(first_folder, "source"), Path(second_folder, "another", "folder")
        export(first)
        export(second, reverse=True)
        for path in second.rglob("*"):
            os.utime(path, (0, 0))
        hashes = build(first, Path(first_folder, "out"))
        again = build(second, Path(second_folder, "out"), umask=0o077, timezone="Asia/Tokyo")
        if hashes != again:
            raise BuildError(f"two builds of the same commit differ: {hashes} and {again}")
        output.mkdir(parents=True, exist_ok=True)
        for name in hashes:
            shutil.copy(Path(first_folder, "out", name), output / name)
    sums = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    (output / "SHA256SUMS").write_text(sums, encoding="utf-8")
    print(sums, end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
