"""A software bill of materials of what is installed for serving, in CycloneDX 1.6.

    python -m release.sbom dist/resnet-service.cdx.json

cyclonedx-py reads the environment of this Python. The result has the packages of `requirements.lock` only,
without those for development, and the licenses of docs/licenses.md. The same environment and commit give the
same bytes: SOURCE_DATE_EPOCH, by default the time of the last commit, is its timestamp.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name
from packaging.version import Version

from release.dist import commit_time
from release.licenses import License, Policy, licenses
from release.lock import REPOSITORY, SERVING_LOCK, locked_versions
from resnet_service import __version__

_SCHEMA: Final = SchemaVersion.V1_6
_ROOT: Final = "root-component"


class SBOMError(Exception):
    """The environment is not that of the lock file, or the result does not match the schema."""


def environment_sbom(epoch: int) -> dict[str, Any]:
    """Return the bill of materials of all packages that are installed for this Python."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--spec-version", _SCHEMA.to_version()]
    options = ["--pyproject", str(REPOSITORY / "pyproject.toml"), "--output-reproducible", "--no-validate"]
    result = subprocess.run(
        [*command, *options, sys.executable],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        stdout=subprocess.PIPE,
        check=True,
    )
    bill: dict[str, Any] = json.loads(result.stdout)
    return bill


def serving_sbom(
    bill: dict[str, Any], locked: Mapping[str, Iterable[str]], known: Mapping[str, License]
) -> dict[str, Any]:
    """Return `bill` with the packages in `locked` and their `known` licenses.

    Raises SBOMError if an installed version is not that of the lock file. A local version such as 2.14.1+cpu
    is the locked one in another build.
    """
    components = []
    for component in bill["components"]:
        name = canonicalize_name(component["name"])
        if name not in locked:
            continue
        if Version(component["version"]).public not in locked[name]:
            raise SBOMError(
                f"{name} {component['version']} is installed, and {SERVING_LOCK.name} has {locked[name]}"
            )
        license_choice = {"expression": known[name].expression, "acknowledgement": "concluded"}
        components.append(component | {"licenses": [license_choice]})
    references = {_ROOT, *(component["bom-ref"] for component in components)}
    dependencies = [
        entry | {"dependsOn": [other for other in entry.get("dependsOn", []) if other in references]}
        for entry in bill["dependencies"]
        if entry["ref"] in references
    ]
    root = bill["metadata"]["component"] | {
        "version": __version__,
        "purl": f"pkg:pypi/resnet-service@{__version__}",
    }
    return bill | {
        "metadata": bill["metadata"] | {"component": root},
        "components": components,
        "dependencies": dependencies,
    }


def to_json(bill: dict[str, Any]) -> str:
    """Return the text of a bill of materials. Raises SBOMError if it does not match the schema."""
    text = json.dumps(bill, indent=2, sort_keys=True) + "\n"
    if error := JsonStrictValidator(_SCHEMA).validate_str(text):
        raise SBOMError(str(error))
    return text


def main(output: Path) -> None:
    """Write the bill of materials to `output`."""
    locked = locked_versions(SERVING_LOCK)
    bill = serving_sbom(environment_sbom(commit_time()), locked, licenses(locked, Policy.load()))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(to_json(bill), encoding="utf-8")
    print(f"{output}: {len(bill['components'])} packages")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
