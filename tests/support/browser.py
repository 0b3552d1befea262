"""A headless Chromium that can reach one address and nothing else."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Route, expect, sync_playwright

_CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or "")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE_MS = 30_000


@contextmanager
def browsing(url: str, width: int = 1100, height: int = 900) -> Iterator[Page]:
    """Yield a page that may ask `url`; at the end, it must have asked for nothing else, and had no error."""
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

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(_PATIENCE_MS)
        expect.set_options(timeout=_PATIENCE_MS)
        page.route("**/*", guard)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert not foreign, foreign
    assert not errors, errors


def photographed(page: Page, name: str) -> None:
    """Keep an image of the page, for the documentation, where SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png")
