"""What a proxy in front of the service changes: the prefix of paths, the client's address and the scheme."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, cast

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from resnet_service.proxies import ROOT_PATH_PATTERN

_ROOT_PATH: Final = re.compile(ROOT_PATH_PATTERN)


class ProxyMiddleware:
    """Sets root_path, client and scheme in the scope to what the client of the proxy sees.

    The prefix is the setting `root_path`, or X-Forwarded-Prefix of a trusted proxy. Proxies may remove it
    from the path or not. X-Forwarded-For and -Proto are used if the peer is in one of the `trusted` networks;
    the headers of all others are ignored. Outermost, so that the access log has the client's address.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        self._app = app
        self._root_path = root_path
        self._trusted = trusted
        # Its trust in other proxies of the chain is that of `trusted` as well.
        self._with_client = ProxyHeadersMiddleware(cast(Any, app), [str(network) for network in trusted])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root_path = self._root_path
        is_trusted = self._is_trusted(scope)
        if is_trusted:
            forwarded = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
            if _ROOT_PATH.fullmatch(forwarded):  # anything else would be a part of the API page
                root_path = forwarded or root_path
        if root_path:
            path = scope["path"]
            if path == root_path:
                path += "/"
            scope["root_path"] = root_path
            scope["path"] = path if path.startswith(f"{root_path}/") else root_path + path
        if is_trusted:
            await self._with_client(cast(Any, scope), cast(Any, receive), cast(Any, send))
        else:
            await self._app(scope, receive, send)

    def _is_trusted(self, scope: Scope) -> bool:
        """Return whether the peer is a trusted proxy; replaces an IPv4 address in IPv6 form by itself."""
        if not self._trusted or not scope.get("client"):
            return False
        host, port = scope["client"]
        address = ip_address(host)
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
            scope["client"] = (str(address), port)
        return any(address in network for network in self._trusted)
