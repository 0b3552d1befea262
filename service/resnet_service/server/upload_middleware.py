"""What holds for every request before a route sees it: its API key, and the memory that its body may take."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resnet_service.errors import ServiceError
from resnet_service.server.exception_handlers import app_path, error_response
from resnet_service.server.state import AppState
from resnet_service.server.uploads import is_body_discarded


class AuthMiddleware:
    """ASGI middleware that rejects who has no key, and holds the memory of bodies until they are answered."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._state.keys.check(app_path(scope), Headers(scope=scope))
        except ServiceError as error:
            await error_response(scope, error)(scope, receive, send)
            return
        uploads = self._state.uploads
        held = 0

        async def receive_held() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            if size and not is_body_discarded(scope):
                uploads.acquire(size)
                held += size
            return message

        try:
            await self._app(scope, receive_held, send)
        finally:
            uploads.release(held)
