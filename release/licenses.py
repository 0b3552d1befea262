"""The licenses of the packages for serving, and whether each one is accepted.

    python -m release.licenses

checks `requirements.lock` against `licenses.toml` and writes docs/licenses.md. A license is what the metadata
of the installed package declares as an SPDX expression, or else what `licenses.toml` says. The table is the
same on every platform, with and without CUDA: what is not installed everywhere is in `licenses.toml`.
"""

import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final, Self

from license_expression import AND, ExpressionError, LicenseExpression, get_spdx_licensing
from packaging.utils import canonicalize_name

from release.lock import REPOSITORY, SERVING_LOCK, locked_versions

if TYPE_CHECKING:
    from importlib.metadata import PackageMetadata

POLICY: Final = REPOSITORY / "release/licenses.toml"
TABLE: Final = REPOSITORY / "docs/licenses.md"

_SPDX: Final = get_spdx_licensing()
_CLASSIFIERS: Final = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""The license classifiers that name one license; "BSD License", for example, may be any of several."""

_PAGE: Final = """\
# Licenses

The packages for serving (`requirements.lock`, all platforms) and their licenses as SPDX expressions.
`make licenses` generates them from the metadata and [licenses.toml](../release/licenses.toml), which lists
the accepted licenses and those that packages do not declare. A test fails if a package has an unknown or
another license. Wheels contain libraries with licenses of their own: their texts are in the folder `licenses`
of the installed package's metadata.

Packages with a proprietary license are accepted by name: {reasons}

| package | license | source |
|---|---|---|
"""


@dataclass(frozen=True)
class License:
    """The license of a package: an SPDX expression, and where it comes from."""

    expression: str
    source: str


@dataclass(frozen=True)
class Policy:
    """Accepted licenses, licenses that packages do not declare, and proprietary ones with the reasons."""

    accepted: frozenset[str]
    packages: dict[str, License]
    proprietary: dict[str, License]
    reasons: tuple[str, ...]

    @classmethod
    def load(cls) -> Self:
        """Read `licenses.toml`."""
        data = tomllib.loads(POLICY.read_text(encoding="utf-8"))
        return cls(
            frozenset(data["accepted"]),
            {name: License(entry["license"], entry["reason"]) for name, entry in data["packages"].items()},
            {
                name: License(expression, "accepted by name")
                for expression, entry in data["proprietary"].items()
                for name in entry["packages"]
            },
            tuple(entry["reason"] for entry in data["proprietary"].values()),
        )

    def accepts(self, expression: str) -> bool:
        """Return whether an SPDX expression can be satisfied with accepted licenses."""
        return self._accepts(_SPDX.parse(expression))

    def _accepts(self, parsed: LicenseExpression) -> bool:
        if parsed.isliteral:
            return parsed.render() in self.accepted
        every_or_any = all if isinstance(parsed, AND) else any
        return every_or_any(self._accepts(part) for part in parsed.args)


class LicenseError(Exception):
    """Packages have unknown or unaccepted licenses; the message has a line for each."""


def installed_metadata(name: str) -> "PackageMetadata | None":
    """Return the metadata of an installed package, or None."""
    try:
        return metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None


def declared_license(package: "PackageMetadata") -> str | None:
    """Return the SPDX expression that a package declares; None if it declares none, or is ambiguous."""
    for field in ("License-Expression", "License"):
        if field in package and (expression := _normalized(package[field])):
            return expression
    names = {
        classifier.rsplit(" :: ", 1)[1]
        for classifier in package.get_all("Classifier") or []
        if classifier.startswith("License :: ")
    }
    return _CLASSIFIERS.get(names.pop()) if len(names) == 1 else None


def _normalized(text: str) -> str | None:
    if len(text) > 500:  # the whole text of a license
        return None
    try:
        info = _SPDX.validate(text)
    except ExpressionError:
        return None
    return None if info.errors else info.normalized_expression


def licenses(
    names: Iterable[str],
    policy: Policy,
    installed: Callable[[str], "PackageMetadata | None"] = installed_metadata,
) -> dict[str, License]:
    """Return the license of each package. Raises LicenseError if one is unknown or not accepted."""
    result: dict[str, License] = {}
    problems = []
    names = [canonicalize_name(name) for name in names]
    for name in names:
        package = installed(name)
        declared = None if package is None else declared_license(package)
        listed = policy.packages.get(name)
        if name in policy.proprietary:
            result[name] = policy.proprietary[name]
        elif declared and listed and declared != listed.expression:
            problems.append(f"{name} declares {declared}, but licenses.toml has {listed.expression}")
        elif not (found := listed or (License(declared, "its metadata") if declared else None)):
            state = "is not installed" if package is None else "declares no SPDX expression"
            problems.append(f"{name} {state}, and licenses.toml does not list it")
        elif not policy.accepts(found.expression):
            problems.append(f"{name} has the license {found.expression}, which is not accepted")
        else:
            result[name] = found
    unused = sorted((policy.packages.keys() | policy.proprietary.keys()) - set(names))
    problems += [f"{name} is in licenses.toml, but not in the lock file" for name in unused]
    if problems:
        raise LicenseError("\n".join(problems))
    return result


def page() -> str:
    """Return the text of docs/licenses.md. Raises LicenseError if a license is unknown or not accepted."""
    policy = Policy.load()
    table = licenses(locked_versions(SERVING_LOCK), policy)
    rows = (f"| {name} | {entry.expression} | {entry.source} |\n" for name, entry in table.items())
    return _PAGE.format(reasons=" ".join(policy.reasons)) + "".join(rows)


def main() -> None:
    """Write docs/licenses.md."""
    try:
        TABLE.write_text(page(), encoding="utf-8")
    except LicenseError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
