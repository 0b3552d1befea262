"""release/licenses.py: every package for serving has an accepted license, on every platform."""

from email.message import Message
from typing import Any, Final

import pytest

from release.licenses import TABLE, LicenseError, Policy, installed_metadata, licenses, page
from release.lock import SERVING_LOCK, locked_versions

POLICY: Final = Policy.load()
ALL: Final = frozenset(locked_versions(SERVING_LOCK))
LISTED: Final = POLICY.packages.keys() | POLICY.proprietary.keys()


def check(expression: str | None, *classifiers: str) -> str:
    """Return the license of a package with this metadata, among the packages of the lock file."""
    package: Any = Message()
    if expression:
        package["License-Expression"] = expression
    for classifier in classifiers:
        package["Classifier"] = f"License :: OSI Approved :: {classifier}"
    found = licenses(
        [*ALL, "example"], POLICY, lambda name: package if name == "example" else installed_metadata(name)
    )
    return found["example"].expression


def test_the_table_is_current_and_every_license_is_accepted() -> None:
    """docs/licenses.md has each package of requirements.lock; an unknown or other license is an error."""
    assert TABLE.read_text(encoding="utf-8") == page(), "run: make licenses"


def test_the_table_does_not_depend_on_the_packages_of_cuda_or_windows() -> None:
    """Machines that have PyTorch's CPU wheels, or another operating system, get the same result."""

    def without_cuda(name: str) -> Any:
        is_missing = name.startswith(("cuda-", "nvidia-")) or name in ("triton", "colorama")
        return None if is_missing else installed_metadata(name)

    assert licenses(ALL, POLICY, without_cuda) == licenses(ALL, POLICY)


@pytest.mark.parametrize(
    ("expression", "classifiers", "expected"),
    [
        ("MIT", [], "MIT"),
        ("GPL-3.0-only OR MIT", [], "GPL-3.0-only OR MIT"),
        ("Apache-2.0 WITH LLVM-exception AND (BSD-3-Clause OR GPL-2.0-only)", [], None),
        (None, ["Apache Software License"], "Apache-2.0"),
    ],
)
def test_accepted_licenses(expression: str | None, classifiers: list[str], expected: str | None) -> None:
    """One part of OR is enough, and a classifier that names one license is as good as an expression."""
    assert check(expression, *classifiers) == (expected or expression)


@pytest.mark.parametrize(
    ("expression", "classifiers", "message"),
    [
        ("GPL-3.0-only", [], "example has the license GPL-3.0-only, which is not accepted"),
        ("MIT AND LGPL-2.1-only", [], "which is not accepted"),
        ("Apache-2.0 WITH Swift-exception", [], "which is not accepted"),
        ("LicenseRef-NVIDIA-Proprietary", [], "example declares no SPDX expression"),
        (None, [], "example declares no SPDX expression"),
        (None, ["BSD License"], "example declares no SPDX expression"),
        (None, ["MIT License", "Apache Software License"], "example declares no SPDX expression"),
    ],
)
def test_unknown_and_unaccepted_licenses_are_errors(
    expression: str | None, classifiers: list[str], message: str
) -> None:
    """The error names the package; proprietary licenses are accepted for listed packages only."""
    with pytest.raises(LicenseError, match=message):
        check(expression, *classifiers)


def test_a_package_that_is_not_installed_has_to_be_listed() -> None:
    with pytest.raises(LicenseError, match="example is not installed"):
        licenses([*ALL, "example"], POLICY)


def test_listed_packages_are_locked_and_do_not_contradict_their_metadata() -> None:
    """An entry for a package that is gone, or that declares another license by now, is an error."""
    with pytest.raises(LicenseError, match=r"torchvision is in licenses.toml, but not in the lock file"):
        licenses(ALL - {"torchvision"}, POLICY)
    package: Any = Message()
    package["License-Expression"] = "GPL-3.0-only"
    with pytest.raises(LicenseError, match=r"jinja2 declares GPL-3.0-only, but licenses.toml has BSD"):
        licenses(ALL, POLICY, lambda name: package if name == "jinja2" else installed_metadata(name))
