"""What the page asks the service."""

from dataclasses import dataclass
from typing import Any

import httpx

_QUICK_S = 5.0
_PATIENT_S = 60.0
_VERY_PATIENT_S = 600.0
"""For a benchmark: a large network on a small machine takes minutes."""


class ServiceAway(Exception):
    """Nothing answers at the service's address; the message says what was tried."""


class Refused(Exception):
    """The service answered with an error; the message is its own."""


@dataclass(frozen=True)
class Client:
    """The service at `url`, as in http://localhost:8000."""

    url: str

    def info(self) -> dict[str, Any]:
        """Return what is served: /info."""
        return self._ask("GET", "/info", timeout=_QUICK_S)

    def predict(self, name: str, picture: bytes) -> dict[str, Any]:
        """Classify one picture: /predict."""
        return self._ask("POST", "/predict", files={"file": (name, picture)}, timeout=_PATIENT_S)

    def bench(self) -> list[dict[str, Any]]:
        """Measure the model where it is: /bench."""
        rows: list[dict[str, Any]] = self._ask("GET", "/bench", timeout=_VERY_PATIENT_S)["rows"]
        return rows

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = httpx.request(method, f"{self.url.rstrip('/')}{path}", **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceAway(f"{self.url} does not answer: {error}") from error
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as error:
            raise ServiceAway(f"what answers at {self.url} is not resnet-service") from error
        if response.is_error:
            raise Refused(answer.get("detail") or answer.get("title") or f"status {response.status_code}")
        return answer
