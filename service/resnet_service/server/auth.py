"""API keys: which scopes of the API a request may use, and how often.

A key is stored as its SHA-256 digest and compared in constant time. It never appears in logs, metrics or
responses.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from starlette.datastructures import Headers

from resnet_service.errors import Forbidden, InvalidAPIKeysError, TooManyRequests, Unauthorized
from resnet_service.settings import Settings

SCOPES: Final = ("predict", "docs", "metrics", "bench", "admin")
"""All scopes. `predict` covers all paths without a scope of their own; the health probes need no scope."""

_DEFAULT_SCOPES: Final = frozenset(SCOPES) - {"admin"}
_PROBE_PATHS: Final = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_SCOPES_BY_PATH: Final = {
    "/": "docs",
    "/docs": "docs",
    "/openapi.json": "docs",
    "/metrics": "metrics",
    "/bench": "bench",
    "/reload": "admin",
}
_DOCS_ASSETS_PREFIX: Final = "/static-offline-docs/"
_MIN_KEY_LENGTH: Final = 16
_KEY: Final = re.compile(r"[!-~]+")
_COMMENT: Final = re.compile(r"(?:^|\s)#")
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)/s")


def scope_for_path(path: str) -> str | None:
    """Return the scope that a path needs; None for the health probes, which need none."""
    if path in _PROBE_PATHS:
        return None
    return "docs" if path.startswith(_DOCS_ASSETS_PREFIX) else _SCOPES_BY_PATH.get(path, "predict")


@dataclass(eq=False)
class _Key:
    """One API key: its digest, its scopes, and a token bucket that allows `rate` requests per second."""

    digest: bytes
    scopes: frozenset[str]
    rate: float | None
    _tokens: float = field(init=False, default=0.0)
    _refilled_at: float = field(init=False, default=-1e9)

    def consume(self) -> None:
        """Take one token for a request; raises TooManyRequests if the bucket is empty.

        The bucket refills at `rate` tokens per second and holds the tokens of one second, at least one.
        """
        if self.rate is None:
            return
        now, capacity = time.monotonic(), max(1.0, self.rate)
        self._tokens = min(capacity, self._tokens + (now - self._refilled_at) * self.rate)
        self._refilled_at = now
        if self._tokens < 1:
            raise TooManyRequests(
                f"rate limit of this API key exceeded ({self.rate:g} requests per second)",
                (1 - self._tokens) / self.rate,
            )
        self._tokens -= 1


class APIKeys:
    """The API keys of a service, immutable except for their rate buckets.

    Without keys, all scopes are public except `admin`, which then cannot be used at all.
    """

    def __init__(self, keys: Iterable[_Key], public_scopes: frozenset[str]) -> None:
        self._keys = tuple(keys)
        self._public_scopes = public_scopes if self._keys else _DEFAULT_SCOPES

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Read the keys from the settings and the key file; raises InvalidAPIKeysError, which shows none."""
        public_scopes = frozenset(filter(None, re.split(r"[\s,]+", settings.public_scopes)))
        if unknown := public_scopes - _DEFAULT_SCOPES:
            raise InvalidAPIKeysError(
                f"public_scopes: {min(unknown)!r} is not one of {', '.join(SCOPES[:-1])}"
            )
        lines = [] if settings.api_keys is None else re.split("[\n,]", settings.api_keys.get_secret_value())
        if settings.api_keys_file is not None:
            try:
                text = settings.api_keys_file.read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not ASCII"
                raise InvalidAPIKeysError(
                    f"cannot read the API keys from {settings.api_keys_file}: {reason}"
                ) from None  # the cause of a UnicodeDecodeError would show the keys
            lines += text.splitlines()
        entries = [_COMMENT.split(line)[0].split() for line in lines]
        keys = [
            _parse_entry(number, words, settings.rate_limit)
            for number, words in enumerate(entries, 1)
            if words
        ]
        if len({key.digest for key in keys}) < len(keys):
            raise InvalidAPIKeysError("duplicate API key; merge its scopes and its rate into one entry")
        if not keys and (settings.api_keys is not None or settings.api_keys_file is not None):
            raise InvalidAPIKeysError("no API keys found; unset api_keys and api_keys_file to require none")
        return cls(keys, public_scopes)

    def check(self, path: str, headers: Headers) -> None:
        """Check a request for `path`; raises Unauthorized, Forbidden or TooManyRequests."""
        scope = scope_for_path(path)
        if scope is None or scope in self._public_scopes:
            return
        if not self._keys:
            raise Forbidden("requires an API key with the scope 'admin', and no API keys are configured")
        key = _key_from_headers(headers)
        if key is None:
            raise Unauthorized("missing API key; send Authorization: Bearer KEY, or X-API-Key: KEY")
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        # Compare with all keys, even after a match: the time must reveal nothing about the keys.
        matches = [entry for entry in self._keys if hmac.compare_digest(entry.digest, digest)]
        if not matches:
            raise Unauthorized("unknown API key")
        if scope not in matches[0].scopes:
            raise Forbidden(f"this API key does not have the scope {scope!r}")
        matches[0].consume()


def _key_from_headers(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _parse_entry(number: int, words: list[str], default_rate: float | None) -> _Key:
    """Parse KEY [SCOPE ...] [N/s]; error messages have the entry's number, as they must not show the key."""
    key, *options = words
    if len(key) < _MIN_KEY_LENGTH or not _KEY.fullmatch(key):
        raise InvalidAPIKeysError(
            f"API key {number} has fewer than {_MIN_KEY_LENGTH} visible ASCII characters"
        )
    rates = [match for option in options if (match := _RATE.fullmatch(option))]
    scopes = frozenset(option for option in options if not _RATE.fullmatch(option))
    if not scopes <= frozenset(SCOPES) or len(rates) > 1 or (rates and float(rates[0][1]) == 0):
        raise InvalidAPIKeysError(
            f"API key {number}: expected KEY [SCOPE ...] [N/s], with scopes from {', '.join(SCOPES)} "
            "and at most one positive rate"
        )
    rate = float(rates[0][1]) if rates else default_rate
    return _Key(hashlib.sha256(key.encode()).digest(), scopes or _DEFAULT_SCOPES, rate)
