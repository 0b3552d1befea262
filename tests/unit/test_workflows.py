"""GitHub workflows, checked without GitHub: schemas, zizmor's rules, scripts, and what they refer to."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from resnet_service import __version__
from tests.support import REPOSITORY

GITHUB: Final = REPOSITORY / ".github"
WORKFLOWS: Final = sorted((GITHUB / "workflows").glob("*.yml"))


def program(name: str) -> str:
    """Return the path of a program that pip installed next to this Python."""
    return str(Path(sys.executable).parent / name)


def scripts(workflow: Path) -> dict[str, str]:
    """Return the shell scripts of a workflow by the names of their steps."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return {step["name"]: step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}


def test_workflows_pass_zizmor() -> None:
    """No finding: permissions, credentials, templates in scripts, actions without a full hash, and others."""
    command = [
        program("zizmor"),
        "--offline",
        "--persona",
        "pedantic",
        "--quiet",
        "--no-progress",
        str(GITHUB),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [("github-workflows", WORKFLOWS), ("dependabot", [GITHUB / "dependabot.yml"])],
    ids=["workflows", "dependabot"],
)
def test_files_match_their_schemas(schema: str, files: list[Path]) -> None:
    command = [program("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_each_action_has_one_version() -> None:
    """All uses of an action have the same commit, and the comment beside it has its version."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    uses = re.findall(r"uses: (\S+)@(\S+)(.*)", text)
    assert len(uses) > 10
    assert all(re.fullmatch(r" # v\d+\.\d+\.\d+", comment) for _, _, comment in uses)
    assert len({action for action, _, _ in uses}) == len(set(uses))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_are_valid_and_use_existing_targets_and_files(workflow: Path) -> None:
    """Bash accepts the scripts, make has their targets, and their paths exist."""
    for script in scripts(workflow).values():
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for arguments in re.findall(r"^\s*make ([a-z -]+)", script, re.MULTILINE):
            command = ["make", "--dry-run", "--always-make", *arguments.split()]
            subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        for path in re.findall(r"\b(?:service|docs|\.ci)/[\w./]+", script):
            assert (REPOSITORY / path).exists() or path.startswith("docs/"), path
        for module in re.findall(r"python -m (release\.\w+)", script):
            assert (REPOSITORY / module.replace(".", "/")).with_suffix(".py").exists()


def test_workflows_run_in_the_base_image_of_the_service() -> None:
    """The container of the tests is that of Dockerfile.cpu, with the same digest."""
    [image] = re.findall(r"^ARG BASE=(\S+)", (REPOSITORY / "Dockerfile.cpu").read_text(), re.MULTILINE)
    jobs = yaml.safe_load((GITHUB / "workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["ci"]["container"]["image"] == image


def test_unit_tests_run_on_every_supported_version_of_python() -> None:
    """The versions of the workflow are those in the classifiers of the package."""
    jobs: dict[str, Any] = yaml.safe_load((GITHUB / "workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    tested = {"3.11", *jobs["unit"]["strategy"]["matrix"]["python"]}
    classifiers = re.findall(r"Python :: (3\.\d+)", (REPOSITORY / "pyproject.toml").read_text())
    assert tested == set(classifiers)


@pytest.mark.parametrize(
    ("tag", "heading", "is_released"),
    [
        (f"v{__version__}", f"## {__version__} - 2026-12-24", True),
        (f"v{__version__}", f"## {__version__} (unreleased)", False),
        (f"v{__version__}0", f"## {__version__} - 2026-12-24", False),
    ],
)
def test_a_release_needs_the_tag_of_the_version_and_a_date_in_the_changelog(
    tag: str, heading: str, is_released: bool, tmp_path: Path
) -> None:
    package = tmp_path / "service/resnet_service"
    package.mkdir(parents=True)
    shutil.copy(REPOSITORY / "service/resnet_service/__init__.py", package)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    script = scripts(GITHUB / "workflows/release.yml")[
        "Check that the tag is the version, and that the changelog has its date"
    ]
    environment = {"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}
    result = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment, check=False)
    assert (result.returncode == 0) == is_released
