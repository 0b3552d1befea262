"""GET /: a page to classify images in a browser, its files, and an index as JSON for other clients.

The page is static and uses the API as any client does. It needs no API key, and asks for one where the API
needs it. Its URLs are relative, so that it works behind any prefix.
"""

from functools import lru_cache
from hashlib import sha256
from os import PathLike, fspath, stat_result
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.datastructures import Headers
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

from resnet_service import __version__, images
from resnet_service.schemas import IndexResponse
from resnet_service.server.state import StateDep

router = APIRouter(include_in_schema=False)
files_router = APIRouter(include_in_schema=False)

_PAGE: Final = Path(__file__).parents[1] / "page"
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


class _PageFiles(StaticFiles):
    """Files of one folder, with the policy of the page. Browsers ask each time whether they have changed."""

    def file_response(
        self,
        full_path: str | PathLike[str],
        stat_result: stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return the file, or 304 if the request has its ETag."""
        headers = {
            "Cache-Control": "no-cache",  # the names of the files stay the same in the next version
            "Content-Security-Policy": _POLICY,
            "ETag": _etag(fspath(full_path), stat_result.st_mtime_ns),
        }
        response = FileResponse(full_path, status_code, headers, stat_result=stat_result)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response


@lru_cache
def _etag(path: str, _modified_ns: int) -> str:
    """Return the ETag of a file's content. Starlette's is that of size and time, which packages can keep."""
    return f'"{sha256(Path(path).read_bytes()).hexdigest()[:32]}"'


_INDEX: Final = _PageFiles(directory=_PAGE)
_ASSETS: Final = _PageFiles(directory=_PAGE / "assets")
_SAMPLES: Final = _PageFiles(directory=Path(images.__file__).parent / "photographs")


@router.get("/")
async def index(request: Request, state: StateDep) -> Response:
    """Return the page if `Accept` names text/html, otherwise name, version and links as JSON."""
    scope = request.scope
    root_path = scope.get("root_path", "")
    if state.settings.web_page and _accepts_html(request.headers.get("accept", "")):
        if root_path and scope.get("raw_path") == root_path.encode():
            return RedirectResponse(f"{root_path}/")  # relative URLs need the slash
        response = await _INDEX.get_response("index.html", scope)
    else:
        links = {"health": "/healthz", "ready": "/readyz", "info": "/info", "metrics": "/metrics"}
        if state.settings.api_docs:
            links = {"docs": "/docs", "openapi": "/openapi.json"} | links
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
    return await _ASSETS.get_response(name, request.scope)


@files_router.get("/page/samples/{name}")
async def sample(name: str, request: Request) -> Response:
    """Return a photograph of the package, or README.md with the sources and licenses of all."""
    return await _SAMPLES.get_response(name, request.scope)


def _accepts_html(accept: str) -> bool:
    """Return whether a header `Accept` names text/html, as browsers do; `*/*` does not."""
    return any(item.partition(";")[0].strip().lower() == "text/html" for item in accept.split(","))
