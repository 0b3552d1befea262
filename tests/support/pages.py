"""Read the code blocks of a page in Markdown, and compare what it shows with what a program returns."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>(?s:.*?))^```$|(?P<indented>(?:^    .+\n)+)", re.MULTILINE
)
_FILE_NAME = re.compile(r"[Ss]ave this\s+as\s+`([^`]+)`:\s*$")


@dataclass(frozen=True)
class Block:
    """A code block. Indented blocks are commands, one a line, and have no language.

    `file` is the name of a fenced block after the words "Save this as `NAME`:", otherwise None. `heading` is
    the text of the last heading before the block.
    """

    heading: str
    language: str
    text: str
    file: str | None = None

    @property
    def commands(self) -> list[str]:
        """The commands of an indented block; none for fenced blocks."""
        return [] if self.language else [line.strip() for line in self.text.splitlines() if line.strip()]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page in their order. A fenced block without a language has `text`."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        outside = re.sub(r"^```(?s:.*?)^```$", "", before, flags=re.MULTILINE)
        headings = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
        heading = headings[-1] if headings else ""
        if match["indented"] is not None:
            yield Block(heading, "", match["indented"])
        else:
            name = _FILE_NAME.search(before)
            yield Block(heading, match["language"] or "text", match["fenced"], name and name[1])


def assert_same_form(shown: Any, actual: Any, place: str = "$") -> None:
    """Check that JSON has the keys and types of what a page shows; raises AssertionError with the place.

    A shown list may be shortened at its end. An empty object or list stands for any. A member that is null
    may be absent.
    """
    if shown is None or actual is None or shown in ({}, []):
        return
    if isinstance(shown, dict):
        assert isinstance(actual, dict), f"{place}: {actual}"
        keys = {key for key in shown.keys() | actual.keys() if (shown.get(key, actual.get(key))) is not None}
        missing = {key for key in keys if key not in shown or key not in actual}
        assert not missing, f"{place}: {sorted(missing)} on one side only"
        for key in keys:
            assert_same_form(shown[key], actual[key], f"{place}.{key}")
    elif isinstance(shown, list):
        assert isinstance(actual, list), f"{place}: {actual}"
        assert len(shown) <= len(actual), f"{place}: {actual}"
        for number, (element, other) in enumerate(zip(shown, actual, strict=False)):
            assert_same_form(element, other, f"{place}[{number}]")
    else:
        kind = (int, float) if isinstance(shown, int | float) and not isinstance(shown, bool) else type(shown)
        assert isinstance(actual, kind), f"{place}: shown {shown!r}, actual {actual!r}"
