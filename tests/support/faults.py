"""Small files that once failed, which are not part of the repository, each with its rule."""

import json
import re
from typing import Any, NamedTuple

import pytest

from tests.support import FAULTS


class Fault(NamedTuple):
    """A file, and what may happen to it: these statuses, this class if it is classified, this word if not."""

    name: str
    data: bytes
    statuses: frozenset[int]
    top1: str | None
    probability: float | None
    named: str | None


def faults() -> list[Fault]:
    """Return the files; an empty list if they are absent."""
    if not (FAULTS / "cases.json").is_file():
        return []
    cases: dict[str, dict[str, Any]] = json.loads((FAULTS / "cases.json").read_text(encoding="utf-8"))
    return [_fault(name, case) for name, case in cases.items()]


def require_faults() -> list[Fault]:
    """Return the files; skip the test if they are absent."""
    found = faults()
    if not found:
        pytest.skip(f"needs the files that once failed in {FAULTS}; set FAULTS to another folder")
    return found


def _fault(name: str, case: dict[str, Any]) -> Fault:
    rule = case["rule"]
    statuses = {int(status) for status in re.findall(r"\b[24]\d\d\b", rule)}
    if "any 4xx" in rule:
        statuses |= set(range(400, 500))
    # Only an image that is to be decoded as the reference has a class.
    top1, probability = (
        (case.get("top1"), case.get("probability")) if "as reference" in rule else (None, None)
    )
    named = re.search(r"names (12-bit JPEG)", rule)
    return Fault(
        name,
        (FAULTS / name).read_bytes(),
        frozenset(statuses),
        top1,
        probability,
        named[1] if named else None,
    )
