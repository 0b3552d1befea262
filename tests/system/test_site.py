"""The documentation site: `make site` builds it, its links lead somewhere, and no page asks another host."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from playwright.sync_api import expect

from tests.support import REPOSITORY
from tests.support.browser import browsing, photographed

LOADING: Final = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Elements that make a browser ask for something, with the attribute that says for what."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, as `make site` does, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    result = build(REPOSITORY / "mkdocs.yml", folder)
    assert result.returncode == 0, result.stderr
    return folder


def build(configuration: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run MkDocs with the options of `make site`."""
    [line] = re.findall(r"^\t(NO_.*mkdocs build.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    options = line.split("mkdocs ", 1)[1].split()
    command = [sys.executable, "-m", "mkdocs", *options]
    command += ["--config-file", str(configuration), "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("link", ["missing.md", "serving.md#no-such-heading", "../deploy/missing.yaml"])
def test_a_broken_link_fails_the_build(link: str, tmp_path: Path) -> None:
    """A page or a file that does not exist, and a heading that does not exist, are errors."""
    repository = copy_repository(tmp_path, "docs", "release")
    with (repository / "docs/cpu.md").open("a") as page:
        page.write(f"\nSee [this]({link}).\n")
    result = build(repository / "mkdocs.yml", tmp_path / "site")
    assert result.returncode != 0
    assert "docs/cpu.md" in result.stderr
    assert link.partition("#")[0].removeprefix("../") in result.stderr


def test_files_that_git_does_not_track_are_not_published(tmp_path: Path) -> None:
    """The folder of the manifests has the API keys of an operator, which Git ignores."""
    repository = copy_repository(tmp_path, "deploy", "release")
    (repository / "deploy/kubernetes/keys/api-keys.txt").write_text("5eedf00d-not-public admin")
    assert build(repository / "mkdocs.yml", tmp_path / "site").returncode == 0
    pages = [path.read_text() for path in (tmp_path / "site/deploy/kubernetes/keys").rglob("*.html")]
    assert any("kustomization" in page for page in pages)
    assert not any("api-keys.txt.md" in page or "5eedf00d-not-public" in page for page in pages)


def copy_repository(folder: Path, *names: str) -> Path:
    """Return a copy of the repository with links to its files, except for copies of these folders."""
    repository = folder / "repository"
    repository.mkdir()
    for path in REPOSITORY.iterdir():
        (repository / path.name).symlink_to(path)
    for name in names:
        (repository / name).unlink()
        shutil.copytree(REPOSITORY / name, repository / name)
    return repository


class Elements(HTMLParser):
    """The links, the resources and the anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.anchors = {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.anchors.add(attributes.get("id", ""))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag in LOADING and LOADING[tag] in attributes:
            self.resources.append(attributes[LOADING[tag]])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Elements]:
    """Return the elements of all pages of the site."""
    return {page: Elements(page) for page in site.rglob("*.html")}


def test_every_link_of_the_site_leads_to_a_page_and_an_anchor(
    site: Path, pages: dict[Path, Elements]
) -> None:
    """Links within the site exist, those of the theme included; others are https."""
    assert len(pages) > 50
    for page, elements in pages.items():
        if page.name == "404.html":
            continue  # its links begin at the root of the host, wherever the site is
        for link in elements.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto"), f"{page}: {link}"
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_relative_to(site.resolve()) or target == page, f"{page}: {link}"
            assert target.exists(), f"{page}: {link}"
            if target.suffix == ".html":
                known = pages[site / target.relative_to(site.resolve())] if target != page else elements
                assert unquote(parts.fragment) in known.anchors | {"__skip"}, f"{page}: {link}"


def test_the_site_loads_nothing_from_other_hosts(site: Path, pages: dict[Path, Elements]) -> None:
    """Scripts, styles, images and fonts of all pages and style sheets are files of the site, or data."""
    resources = {(page, url) for page, elements in pages.items() for url in elements.resources}
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert "@import" not in text
        resources |= {(sheet, url.strip("\"'")) for url in re.findall(r"url\(([^)]+)\)", text)}
    for page, url in resources:
        parts = urlsplit(url)
        assert parts.scheme in ("", "data"), f"{page}: {url}"
        assert not parts.netloc, f"{page}: {url}"
        if parts.path and not parts.scheme and page.name != "404.html":
            assert (page.parent / unquote(parts.path)).exists(), f"{page}: {url}"


def test_every_page_is_in_the_navigation() -> None:
    """The navigation names each page of docs/ and the pages beside it once."""
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    navigation = re.findall(r"[\w./-]+\.md", str(yaml.safe_load(text.split("\nnav:\n", 1)[1])))
    paths = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
    paths += (REPOSITORY / "docs").glob("*.md")
    assert sorted(navigation) == sorted(str(path.relative_to(REPOSITORY)) for path in paths)


@pytest.fixture(scope="module")
def site_url(site: Path) -> Iterator[str]:
    """Serve the site on loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Write no log."""

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_the_browser_asks_only_the_site(site_url: str, colors: str) -> None:
    """Diagrams are drawn, and the search finds a page, with requests to the server of the site alone."""
    with browsing(site_url, clean_console=True, color_scheme=colors) as page:
        page.goto(f"{site_url}/index.html")
        expect(page.locator("div.mermaid")).to_have_count(1)  # the theme replaces the text by its drawing
        page.keyboard.press("/")
        page.keyboard.type("half-close")
        expect(page.locator(".md-search-result__item").first).to_contain_text("half-close", ignore_case=True)
        page.keyboard.press("Escape")
        for name in ("index", "docs/tutorial", "docs/http-reference"):
            page.goto(f"{site_url}/{name}.html")
            page.wait_for_load_state("networkidle")
            photographed(page, f"site-{name.rpartition('/')[2]}-{colors}")


def test_pages_fit_a_phone(site_url: str) -> None:
    """No page is wider than the screen; wide tables and code scroll by themselves."""
    with browsing(site_url, width=390, height=800) as page:
        for name in ("index", "docs/tutorial", "docs/serving", "docs/http-reference"):
            page.goto(f"{site_url}/{name}.html")
            width = page.evaluate("document.scrollingElement.scrollWidth")
            photographed(page, f"site-{name.rpartition('/')[2]}-phone")
            assert width <= 390, name
