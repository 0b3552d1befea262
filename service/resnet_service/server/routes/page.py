"""GET /: a page to classify images in a browser, its files, and an index as JSON for other clients.

The page is static and uses the API as any client does. It needs no API key, and asks for one where the API
needs it. Its URLs are relative, so that it works behind any prefix.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from resnet_service import __version__, images
from resnet_service.explanations import has_captum
from resnet_service.schemas import IndexResponse
from resnet_service.server.state import StateDep

router = APIRouter(include_in_schema=False)
files_router = APIRouter(include_in_schema=False)

_PAGE: Final = Path(__file__).parents[1] / "page"
_ASSETS: Final = _PAGE / "assets"
_SAMPLES: Final = Path(images.__file__).parent / "photographs"
_MEDIA_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".md": "text/plain",
    ".svg": "image/svg+xml",
}
"""By the end of a name: a browser runs no script of another type, and the tables of systems differ."""
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: for the images that the user has chosen
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text of files and labels cannot become HTML
        "trusted-types 'none'",
    )
)


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


@cache
def _read(folder: Path) -> dict[str, _File]:
    """Return the files of a folder by name. All together have less than 400 KB."""
    files = {}
    for path in filter(Path.is_file, folder.iterdir()):
        content = path.read_bytes()
        etag = f'"{sha256(content).hexdigest()[:32]}"'
        files[path.name] = _File(content, _MEDIA_TYPES[path.suffix], etag)
    return files


def _respond(request: Request, folder: Path, name: str) -> Response:
    """Return a file with the policy of the page, or 304 if the client has it: browsers ask each time."""
    file = _read(folder).get(name)
    if file is None:
        raise HTTPException(404)
    headers = {
        "Cache-Control": "no-cache",  # the names of the files stay the same in the next version
        "Content-Security-Policy": _POLICY,
        "ETag": file.etag,
    }
    known = map(str.strip, request.headers.get("if-none-match", "").split(","))
    if not {file.etag, f"W/{file.etag}", "*"}.isdisjoint(known):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


@router.get("/")
async def index(request: Request, state: StateDep) -> Response:
    """Return the page if `Accept` names text/html, otherwise name, version and links as JSON."""
    scope = request.scope
    root_path = scope.get("root_path", "")
    if state.settings.web_page and _accepts_html(request.headers.get("accept", "")):
        if root_path and scope.get("raw_path") == root_path.encode():
            return RedirectResponse(f"{root_path}/")  # relative URLs need the slash
        response = _respond(request, _PAGE, "index.html")
    else:
        links = {"health": "/healthz", "ready": "/readyz", "info": "/info", "metrics": "/metrics"}
        if state.settings.api_docs:
            links = {"docs": "/docs", "openapi": "/openapi.json"} | links
        if has_captum():
            links["explain"] = "/explain"  # the page has a button for it
        body = IndexResponse(
            name="resnet-service",
            version=__version__,
            links={name: root_path + path for name, path in links.items()},
        )
        response = Response(body.model_dump_json(), media_type="application/json")
    response.headers["Vary"] = "Accept"
    return response


@files_router.get("/page/{name}")
async def asset(name: str, request: Request) -> Response:
    """Return a script, the style sheet or the icon of the page."""
    return _respond(request, _ASSETS, name)


@files_router.get("/page/samples/{name}")
async def sample(name: str, request: Request) -> Response:
    """Return a photograph of the package, or README.md with the sources and licenses of all."""
    return _respond(request, _SAMPLES, name)


def _accepts_html(accept: str) -> bool:
    """Return whether a header `Accept` names text/html, as browsers do; `*/*` does not."""
    return any(item.partition(";")[0].strip().lower() == "text/html" for item in accept.split(","))
