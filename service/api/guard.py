"""What holds for every request before a route sees it: its API key, and the memory that its body may take."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import problems
from service.api.service import Service
from service.api.uploads import is_discarding
from service.errors import ServiceError


class Guard:
    """ASGI middleware that refuses who has no key, and holds the memory of bodies until they are answered."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._service.keys.check(problems.path_of(scope), Headers(scope=scope))
        except ServiceError as error:
            await problems.answer(scope, error)(scope, receive, send)
            return
        uploads = self._service.uploads
        held = 0

        async def receive_held() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            if size and not is_discarding(scope):
                uploads.take(size)
                held += size
            return message

        try:
            await self._app(scope, receive_held, send)
        finally:
            uploads.give_back(held)
