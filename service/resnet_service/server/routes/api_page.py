"""GET /docs: the OpenAPI document as a page, with scripts and styles from this server."""

from typing import Final

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STATIC: Final = "/static-offline-docs"
"""Where FastAPIOffline serves the files of Swagger UI."""
_POLICY: Final = (
    "default-src 'self' 'unsafe-inline' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI has inline scripts and styles."""


@router.get("/docs")
async def api_page(request: Request) -> HTMLResponse:
    """Return Swagger UI for the OpenAPI document of this service."""
    root_path = request.scope.get("root_path", "")
    response = get_swagger_ui_html(
        openapi_url=root_path + request.app.openapi_url,
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{root_path}{_STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{root_path}{_STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{root_path}{_STATIC}/favicon.png",
    )
    response.headers["Content-Security-Policy"] = _POLICY
    return response
