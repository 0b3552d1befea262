"""Decide if and when the client sends a request again.

httpx-retries does not replace this. It has no deadline for the whole call (it bounds the waits only, and
shortens a Retry-After that exceeds them) and no jitter for Retry-After. Its documented extension points do
not add them in fewer lines.
"""

import random
import time
from typing import Final

import httpx

Outcome = httpx.Response | httpx.HTTPError | httpx.InvalidURL
"""The result of one attempt: a response, or the reason for having none."""

_RETRY_STATUSES: Final = frozenset({429, 503})
_INITIAL_DELAY_S: Final = 0.1
_MIN_ATTEMPT_S: Final = 0.001
_MAX_JITTER: Final = 1.1


class RetryState:
    """The attempts and the time that one call has left.

    Retries responses with status 429 and 503 after their Retry-After, and failed connections after a delay
    that doubles with each attempt. Classifying an image twice has no side effects, so every request may be
    retried. Create one per call:

        retry = RetryState(attempts=3, timeout_s=60.0)
        while (delay_s := retry.next_delay(send(timeout=retry.remaining_s))) is not None:
            time.sleep(delay_s)
    """

    def __init__(self, attempts: int, timeout_s: float) -> None:
        self._attempts_left = attempts
        self._delay_s = _INITIAL_DELAY_S
        self._deadline = time.monotonic() + timeout_s

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, the timeout of the next attempt; at least one millisecond."""
        return max(_MIN_ATTEMPT_S, self._deadline - time.monotonic())

    def next_delay(self, outcome: Outcome) -> float | None:
        """Count an attempt; return the seconds to wait before the next one, or None to stop."""
        self._attempts_left -= 1
        delay_s, self._delay_s = self._delay_s, 2 * self._delay_s
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in _RETRY_STATUSES:
                return None
            retry_after = outcome.headers.get("Retry-After", "")
            delay_s = float(retry_after) if retry_after.isdecimal() else delay_s
        elif not isinstance(outcome, httpx.TransportError):
            return None
        # Jitter: requests that were rejected together must not return together.
        delay_s *= random.uniform(1, _MAX_JITTER)  # noqa: S311
        is_retry_possible = self._attempts_left > 0 and delay_s < self._deadline - time.monotonic()
        return delay_s if is_retry_possible else None
