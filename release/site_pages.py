"""The pages of the documentation site: a hook of MkDocs, used by `make site`.

The pages are those of the repository, README.md and others beside docs/ included, at the paths that they have
there. So their relative links work on the site as they do on a Git host. A link to a file that is not a page,
such as a manifest or a test, leads to a page with its text, and a link to a folder to a page with its files:
the site has no address of the repository, and needs none. Diagrams are drawn by Mermaid from a file of the
site, which only pages with a diagram load.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

_ROOT: Final = Path(__file__).parents[1]
_ROOT_PAGES: Final = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
_ASSETS: Final = frozenset({".png", ".ipynb"})
"""Suffixes of the files that the site has as they are; those of all others are pages with their text."""

_LINK: Final = re.compile(r"(\]\()([^)\s#]+)([^)]*\))")
_MERMAID: Final = "assets/mermaid.js"
_LANGUAGES: Final = {"py": "python", "yml": "yaml", "proto": "proto", "toml": "toml", "json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by the pages of the repository and everything that these link to."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    pages = [*_ROOT_PAGES, *(_uri(path) for path in sorted((_ROOT / "docs").glob("*.md")))]
    targets = set(pages)
    for page in pages:
        targets |= set(_targets(page))
    for uri in sorted(targets):
        files.append(_page_or_asset(uri, config, is_in_navigation=uri in pages))
    mermaid = str(resources.files("mermaidx") / "assets/mermaid.js")
    files.append(File.generated(config, _MERMAID, abs_src_path=mermaid))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Direct links to files and folders to their pages."""
    del config, files
    here = page.file.src_uri

    def directed(match: re.Match[str]) -> str:
        uri = _resolved(here, match[2])
        if uri is None or (_ROOT / uri).suffix in {".md", *_ASSETS}:
            return match[0]
        ending = "/README.md" if (_ROOT / uri).is_dir() else ".md"
        return f"{match[1]}{match[2].rstrip('/')}{ending}{match[3]}"

    return _LINK.sub(directed, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Load Mermaid on a page with a diagram, before the theme looks for it on another host."""
    del config
    if 'class="mermaid"' not in output:
        return output
    depth = page.url.count("/")
    return output.replace("</head>", f'<script src="{"../" * depth}{_MERMAID}"></script></head>')


def _uri(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix()


def _resolved(page: str, target: str) -> str | None:
    """Return the path in the repository that a link leads to; None for an URL and for what does not exist."""
    if ":" in target:
        return None
    path = Path(os.path.normpath(_ROOT / Path(page).parent / target))
    return _uri(path) if path.is_relative_to(_ROOT) and path.exists() else None


def _targets(page: str) -> Iterator[str]:
    """Yield the files that a page links to; of a linked folder, the folder and all files in it."""
    text = (_ROOT / page).read_text(encoding="utf-8")
    for _, target, _ in _LINK.findall(text):
        uri = _resolved(page, target)
        if uri is None:
            continue
        yield uri
        if (_ROOT / uri).is_dir():
            yield from map(_uri, _files_below(_ROOT / uri))


def _files_below(folder: Path) -> Iterable[Path]:
    """Return the files below a folder that Git tracks: others can be secret, such as API keys."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and _uri(path) in _tracked())


@cache
def _tracked() -> frozenset[str]:
    command = ["git", "ls-files", "-z"]
    return frozenset(
        subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    )


def _page_or_asset(uri: str, config: MkDocsConfig, *, is_in_navigation: bool) -> File:
    path = _ROOT / uri
    if path.suffix in {".md", *_ASSETS}:
        inclusion = InclusionLevel.INCLUDED if is_in_navigation else InclusionLevel.NOT_IN_NAV
        return File.generated(config, uri, abs_src_path=str(path), inclusion=inclusion)
    src_uri, text = (f"{uri}/README.md", _listing(path)) if path.is_dir() else (f"{uri}.md", _source(path))
    content = f"---\nsearch:\n  exclude: true\n---\n\n# {uri}\n\n{text}\n"
    return File.generated(config, src_uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV)


def _listing(folder: Path) -> str:
    names = [path.relative_to(folder).as_posix() for path in _files_below(folder)]
    return "\n".join(f"- [{name}]({name})" for name in names)


def _source(path: Path) -> str:
    language = _LANGUAGES.get(path.suffix.removeprefix("."), "text")
    return f"~~~~~~ {language}\n{path.read_text(encoding='utf-8')}~~~~~~"
