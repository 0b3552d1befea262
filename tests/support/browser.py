"""A headless Chromium that can reach one address and nothing else."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, Route, expect, sync_playwright

_CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or "")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE_MS = 30_000
_FAILED_REQUEST = "Failed to load resource"
"""The start of the console's line about a response such as 422, and about a service that has stopped."""


@contextmanager
def browsing(
    url: str, width: int = 1100, height: int = 900, *, clean_console: bool = False, **options: Any
) -> Iterator[Page]:
    """Yield a page that may ask `url`; at the end, it must have asked for nothing else, and had no error.

    With `clean_console`, it must not have written errors and warnings to the console either, where violations
    of the content security policy are, except about requests that failed. `options` are those of Playwright's
    `Browser.new_page`.
    """
    if not _CHROMIUM:
        pytest.skip("needs Chromium (Debian's package chromium, or its path in CHROMIUM)")
    foreign: list[str] = []
    errors: list[str] = []

    def guard(route: Route) -> None:
        if route.request.url.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            foreign.append(route.request.url)
            route.abort()

    def read_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(_FAILED_REQUEST):
            errors.append(message.text)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        page.set_default_timeout(_PATIENCE_MS)
        expect.set_options(timeout=_PATIENCE_MS)
        page.route("**/*", guard)
        page.on("pageerror", lambda error: errors.append(str(error)))
        if clean_console:
            page.on("console", read_console)
        yield page
        browser.close()
    assert not foreign, foreign
    assert not errors, errors


def photographed(page: Page, name: str) -> None:
    """Keep an image of the page, for the documentation, where SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        path = Path(folder) / f"{name}.png"
        page.screenshot(path=path)
        with Image.open(path) as image:  # 256 colors: about a third of the size
            image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT).save(path, optimize=True)
