"""URLs in the settings: origins of web pages, as browsers send them, and the trace collector."""

import re
from typing import Final
from urllib.parse import urlsplit

from pydantic import AnyUrl, ValidationError

from resnet_service.hints import input_error

_SPECIAL: Final = frozenset({"*", "null"})
"""All origins, and that of local files and sandboxed frames."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def normalize_origins(text: str) -> str:
    """Return a comma-separated list of origins in the form that browsers send.

    Capitals, default ports, a slash at the end and international host names are converted. Raises
    PydanticCustomError for what can never be the origin of a page, because it would have no effect.
    """
    return ",".join(_normalize(word) for word in re.split(r"[\s,]+", text) if word)


def _normalize(text: str) -> str:
    if text.lower() in _SPECIAL:
        return text.lower()
    if "*" in text:
        raise input_error(f"{text!r} has a wildcard; list each origin, or * for all")
    if "://" not in text:
        raise input_error(f"{text!r} has no scheme; did you mean 'https://{text}'?")
    try:
        url = AnyUrl(text)
    except ValidationError as error:
        raise input_error(f"{text!r} is not an origin such as https://example.org") from error
    if not url.host:
        raise input_error(f"{text!r} has no host; the origin of local files is null")
    is_default = url.port in (None, _DEFAULT_PORTS.get(url.scheme))
    origin = f"{url.scheme}://{url.host}" + ("" if is_default else f":{url.port}")
    if url.path not in (None, "/") or url.query or url.fragment or url.username or url.password:
        raise input_error(f"{text!r} has more than scheme, host and port; did you mean {origin!r}?")
    return origin


def check_http_url(value: str) -> str:
    """Return the URL; raises ValueError if it is not an HTTP URL with a host."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a URL has the form http://HOST:PORT/PATH")
    _ = parts.port  # raises ValueError if it is out of range
    return value
