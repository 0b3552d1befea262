"""API keys: which parts of the service a request may use, and how often.

A key is kept as its SHA-256 and compared in constant time; it is in no log, no metric and no answer.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from starlette.datastructures import Headers

from resnet_service.errors import Forbidden, InvalidAPIKeysError, TooManyRequests, Unauthorized
from resnet_service.settings import Settings

SCOPES: Final = ("predict", "docs", "metrics", "bench", "admin")
"""`predict` is everything that is none of the others; the probes belong to none and are open to all."""

_DEFAULT: Final = frozenset(SCOPES) - {"admin"}
_PROBES: Final = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_PART: Final = {
    "/": "docs",
    "/docs": "docs",
    "/openapi.json": "docs",
    "/metrics": "metrics",
    "/bench": "bench",
    "/reload": "admin",
}
_DOCS_ASSETS: Final = "/static-offline-docs/"
_LEAST_LENGTH: Final = 16
_KEY: Final = re.compile(r"[!-~]+")
_COMMENT: Final = re.compile(r"(?:^|\s)#")
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)/s")


def scope_for_path(path: str) -> str | None:
    """Return the part that a path belongs to; None for the probes."""
    if path in _PROBES:
        return None
    return "docs" if path.startswith(_DOCS_ASSETS) else _PART.get(path, "predict")


@dataclass(eq=False)
class _Key:
    digest: bytes
    parts: frozenset[str]
    rate: float | None
    _tokens: float = field(init=False, default=0.0)
    _filled: float = field(init=False, default=-1e9)

    def count(self) -> None:
        """Take a token of the bucket, which fills with `rate` a second and holds a second's worth."""
        if self.rate is None:
            return
        now, most = time.monotonic(), max(1.0, self.rate)
        self._tokens = min(most, self._tokens + (now - self._filled) * self.rate)
        self._filled = now
        if self._tokens < 1:
            raise TooManyRequests(
                f"more than {self.rate:g} requests a second with this key", (1 - self._tokens) / self.rate
            )
        self._tokens -= 1


class APIKeys:
    """The keys of a service; with none, everything is open but `admin`."""

    def __init__(self, keys: Iterable[_Key], public: frozenset[str]) -> None:
        self._keys = tuple(keys)
        self._public = public if self._keys else frozenset(SCOPES) - {"admin"}

    @classmethod
    def from_settings(cls, settings: Settings) -> "APIKeys":
        """Read the keys that the settings name; raises InvalidAPIKeysError, without showing any."""
        public = frozenset(filter(None, re.split(r"[\s,]+", settings.public_scopes)))
        if unknown := public - _DEFAULT:
            raise InvalidAPIKeysError(
                f"public: there is no part {min(unknown)!r}; say {', '.join(SCOPES[:-1])}"
            )
        lines = [] if settings.api_keys is None else re.split("[\n,]", settings.api_keys.get_secret_value())
        if settings.api_keys_file is not None:
            try:
                text = settings.api_keys_file.read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not ASCII"
                raise InvalidAPIKeysError(
                    f"the API keys cannot be read: {settings.api_keys_file}: {reason}"
                ) from None
            lines += text.splitlines()
        words = [_COMMENT.split(line)[0].split() for line in lines]
        keys = [_read(number, line, settings.rate_limit) for number, line in enumerate(words, 1) if line]
        if len({key.digest for key in keys}) < len(keys):
            raise InvalidAPIKeysError("an API key is given twice; put its parts and its rate into one entry")
        if not keys and (settings.api_keys is not None or settings.api_keys_file is not None):
            raise InvalidAPIKeysError("there is no API key among those given; leave the setting out for none")
        return cls(keys, public)

    @property
    def required(self) -> bool:
        """Whether any part needs a key."""
        return bool(self._keys)

    def check(self, path: str, headers: Headers) -> None:
        """Raise Unauthorized, Forbidden or TooManyRequests where the request may not have this path."""
        part = scope_for_path(path)
        if part is None or part in self._public:
            return
        if not self._keys:
            raise Forbidden("this needs an API key for admin, and the service has none")
        given = _given(headers)
        if given is None:
            raise Unauthorized("send an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
        digest = hashlib.sha256(given.encode("latin-1")).digest()
        # All of them, whichever it is: the time says nothing about the keys.
        matching = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not matching:
            raise Unauthorized("this API key is not known")
        if part not in matching[0].parts:
            raise Forbidden(f"this API key is not for {part}")
        matching[0].count()


def _given(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _read(number: int, words: list[str], rate: float | None) -> _Key:
    """Read KEY [PART ...] [N/s]; `number` is the entry's, by which a message names it."""
    key, *rest = words
    if len(key) < _LEAST_LENGTH or not _KEY.fullmatch(key):
        raise InvalidAPIKeysError(f"API key {number} has fewer than {_LEAST_LENGTH} visible ASCII characters")
    rates = [found for word in rest if (found := _RATE.fullmatch(word))]
    parts = frozenset(word for word in rest if not _RATE.fullmatch(word))
    if not parts <= frozenset(SCOPES) or len(rates) > 1 or (rates and float(rates[0][1]) == 0):
        raise InvalidAPIKeysError(
            f"API key {number}: after the key come parts ({', '.join(SCOPES)}) and a rate (10/s)"
        )
    own = float(rates[0][1]) if rates else rate
    return _Key(hashlib.sha256(key.encode()).digest(), parts or _DEFAULT, own)
