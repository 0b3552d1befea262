"""API keys: which scopes of the API a request may use, and how often.

A key is stored as its SHA-256 digest and compared in constant time. It never appears in logs, metrics or
responses; the access log has its name. `api_key_auth` is the dependency of routes that need a scope.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from fastapi import Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase

from resnet_service.errors import Forbidden, InvalidAPIKeysError, TooManyRequests, Unauthorized
from resnet_service.settings import Settings

if TYPE_CHECKING:
    from resnet_service.server.state import AppState

SCOPES: Final = ("predict", "explain", "metrics", "bench", "admin")
"""All scopes. The health probes and the API page need none."""

_DEFAULT_SCOPES: Final = frozenset(SCOPES) - {"admin"}
_FORMAT: Final = "KEY [SCOPE ...] [N/s] [name=NAME] [priority=bulk] [prediction_log=off]"
_BULK_ONLY: Final = "priority=bulk"
_UNLOGGED: Final = "prediction_log=off"
_MIN_KEY_LENGTH: Final = 16
_KEY: Final = re.compile(r"[!-~]+")
_COMMENT: Final = re.compile(r"(?:^|\s)#")
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)/s")


@dataclass(frozen=True)
class APIKey:
    """One API key: its name in the access log, its digest, its scopes, and its limits.

    `rate` is in requests per second; with `is_bulk_only`, all its requests have the priority bulk, and with
    `is_unlogged`, none of them is in the prediction log.
    """

    name: str
    digest: bytes
    scopes: frozenset[str]
    rate: float | None
    is_bulk_only: bool
    is_unlogged: bool = False

    def describe(self, scope: MutableMapping[str, Any]) -> None:
        """Store in the scope of a request what later layers need to know of its key."""
        scope["api_key_name"] = self.name
        scope["is_bulk_only"] = self.is_bulk_only
        scope["is_unlogged"] = self.is_unlogged


class RateLimiter:
    """Token buckets of the API keys that have a rate, by their digest.

    A bucket refills at the key's rate and holds the tokens of one second, at least one.
    """

    def __init__(self) -> None:
        self._buckets: dict[bytes, tuple[float, float]] = {}  # tokens, and when they were counted

    def count(self, key: APIKey) -> None:
        """Take one token for a request. Raises TooManyRequests if the bucket is empty."""
        if key.rate is None:
            return
        now, capacity = time.monotonic(), max(1.0, key.rate)
        tokens, counted_at = self._buckets.get(key.digest, (capacity, now))
        tokens = min(capacity, tokens + (now - counted_at) * key.rate)
        if tokens < 1:
            self._buckets[key.digest] = (tokens, now)
            raise TooManyRequests(
                f"rate limit of this API key exceeded ({key.rate:g} requests per second)",
                (1 - tokens) / key.rate,
            )
        self._buckets[key.digest] = (tokens - 1, now)


class APIKeys:
    """The API keys of a service, immutable.

    Without keys, all scopes are public except `admin`, which then cannot be used at all.
    """

    def __init__(self, keys: Iterable[APIKey], public_scopes: frozenset[str]) -> None:
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
        if "predict" in public_scopes and (unlogged := [key.name for key in keys if key.is_unlogged]):
            raise InvalidAPIKeysError(
                f"{unlogged[0]} has {_UNLOGGED}, which has no effect: 'predict' is in public_scopes"
            )
        return cls(keys, public_scopes)

    def find(self, digest: bytes) -> APIKey | None:
        """Return the key with this SHA-256 digest, None if a reload has removed it."""
        return next((key for key in self._keys if key.digest == digest), None)

    def check(self, scope: str, headers: Mapping[str, str]) -> APIKey | None:
        """Check that the key in the headers, whose names are in lower case, may use `scope`, and return it.

        Returns None if the scope is public. Raises Unauthorized or Forbidden.
        """
        if scope in self._public_scopes:
            return None
        if not self._keys:
            raise Forbidden("requires an API key with the scope 'admin', and no API keys are configured")
        key = _key_from_headers(headers)
        if key is None:
            raise Unauthorized("missing API key; send Authorization: Bearer KEY, or X-API-Key: KEY")
        digest = hashlib.sha256(key.encode()).digest()
        # Compare with all keys, even after a match: the time must reveal nothing about the keys.
        matches = [entry for entry in self._keys if hmac.compare_digest(entry.digest, digest)]
        if not matches:
            raise Unauthorized("unknown API key")
        if scope not in matches[0].scopes:
            raise Forbidden(f"this API key does not have the scope {scope!r}")
        return matches[0]


class APIKeyAuth(SecurityBase):
    """The security scheme of the API: a dependency that checks the key of a request for its route's scopes.

    One dependency for both headers: FastAPI's HTTPBearer and APIKeyHeader would be two more for each request.

        state: Annotated[AppState, Security(api_key_auth, scopes=["predict"])]
    """

    def __init__(self) -> None:
        self.scheme_name = "APIKey"
        self.model = HTTPBearer(description="Authorization: Bearer KEY. X-API-Key: KEY is accepted as well.")

    async def __call__(self, request: Request, scopes: SecurityScopes) -> "AppState":
        """Return the application's state if the key is valid and within its rate.

        Raises what `APIKeys.check` and `Backend.count_request` raise.
        """
        state: AppState = request.app.state.app_state
        for scope in scopes.scopes:
            # From the backend for each request, because a reload replaces the keys.
            key = state.backend.api_keys.check(scope, request.headers)
            if key is not None:
                key.describe(request.scope)
                if key.rate is not None:
                    await state.backend.count_request(key)
        return state


api_key_auth: Final = APIKeyAuth()


def _key_from_headers(headers: Mapping[str, str]) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _parse_entry(number: int, words: list[str], default_rate: float | None) -> APIKey:
    """Parse one entry: see `_FORMAT`. Error messages have the entry's number instead of the key."""
    key, *options = words
    is_bulk_only, is_unlogged = _BULK_ONLY in options, _UNLOGGED in options
    options = [option for option in options if option not in (_BULK_ONLY, _UNLOGGED)]
    names = [option.removeprefix("name=") for option in options if option.startswith("name=")]
    options = [option for option in options if not option.startswith("name=")]
    if len(key) < _MIN_KEY_LENGTH or not _KEY.fullmatch(key):
        raise InvalidAPIKeysError(
            f"API key {number} has fewer than {_MIN_KEY_LENGTH} visible ASCII characters"
        )
    rates = [match for option in options if (match := _RATE.fullmatch(option))]
    scopes = frozenset(option for option in options if not _RATE.fullmatch(option))
    is_valid = scopes <= frozenset(SCOPES) and len(rates) <= 1 and len(names) <= 1
    if not is_valid or (rates and float(rates[0][1]) == 0) or "" in names:
        raise InvalidAPIKeysError(
            f"API key {number}: expected {_FORMAT}, with scopes from "
            f"{', '.join(SCOPES)}, at most one positive rate and at most one name"
        )
    rate = float(rates[0][1]) if rates else default_rate
    name = names[0] if names else f"key-{number}"
    digest = hashlib.sha256(key.encode()).digest()
    return APIKey(name, digest, scopes or _DEFAULT_SCOPES, rate, is_bulk_only, is_unlogged)
