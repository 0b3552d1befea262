"""Requests that the service's own OpenAPI document allows, and such that it does not, from schemathesis."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import requests
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.transport.serialization import Binary

from load_tests.fuzz.corpus import corpus
from load_tests.fuzz.strategies import FUZZING, seeded
from load_tests.health_prober import HealthProber, resident_mb
from resnet_service.server.v2 import metadata as interface

_CHECKS: Final[list[CheckFunction]] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_TIMEOUT_S: Final = 60
_BENCH: Final = "/bench"
_ROUNDS: Final = 10
"""The memory is looked at after each; and one before them all, to warm up."""
_BENCHES: Final = 1
"""At most so many right requests a round, and as many wrong ones: some of them really measure."""
_WITH_BODY: Final = 10
"""How many times as many requests an operation with a body is sent as one without."""
_REPORTED: Final = 500
"""Characters of a failure."""


@dataclass(frozen=True)
class ApiFuzz:
    """What the API answered: requests by operation and by status, and what was wrong with an answer.

    `memory_mb` is what the service held after each round, in 10^6 bytes.
    """

    requests: dict[str, int]
    statuses: dict[int, int]
    seconds: float
    failures: list[str]
    memory_mb: list[float]
    asked_health: int
    slowest_health_ms: float
    failed_health: int

    @property
    def grown_mb(self) -> float:
        """What the service's memory grew by: from its median in the first half of the rounds to the second's.

        It goes up and down by the pixels of the largest images.
        """
        half = len(self.memory_mb) // 2
        return median(self.memory_mb[half:]) - median(self.memory_mb[:half])


def api_fuzz(url: str, examples: int, pid: int, seed: int = 0) -> ApiFuzz:
    """Send about `examples` requests to all operations of the service at `url`, whose process is `pid`.

    Half of them are as the OpenAPI document says, and half are not; images are from the corpus. An answer
    must be documented: its status, its content type and its schema; and never be of the service's fault.
    With `seed` 0 each run is another.
    The service has to be another process: hypothesis minds who else draws random numbers in its own.
    """
    images = [Binary(data) for _, data in corpus() if len(data) <= 100_000]
    binary = st.one_of(st.sampled_from(images), st.binary(max_size=1000).map(Binary))
    schemathesis.openapi.format("binary", binary)
    for media_type in ("image/*", "application/octet-stream"):
        schemathesis.openapi.media_type(media_type, binary.map(lambda image: image.data))
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    model: str = requests.get(f"{url}/info", timeout=_TIMEOUT_S).json()["model"]
    drawn = [one for operation in operations for one in _drawn(operation, model)]
    a_round = math.ceil(examples / _ROUNDS)
    _Fuzzed(url).send(drawn, a_round, seed)
    fuzzed = _Fuzzed(url)
    memory_mb = []
    started = time.perf_counter()
    with HealthProber(url) as pulse:
        for number in range(1, _ROUNDS + 1):
            fuzzed.send(drawn, a_round, seed and seed + number)
            memory_mb.append(resident_mb(pid))
    return ApiFuzz(
        requests=dict(fuzzed.requests),
        statuses=dict(fuzzed.statuses),
        seconds=time.perf_counter() - started,
        failures=fuzzed.failures,
        memory_mb=memory_mb,
        asked_health=pulse.beats,
        slowest_health_ms=pulse.slowest_ms,
        failed_health=pulse.failures,
    )


@dataclass(frozen=True)
class _Drawn:
    """One way of asking an operation, and its share of all requests."""

    label: str
    cases: st.SearchStrategy[Case[Any]]
    weight: float
    most: int | None


def _drawn(operation: Any, model: str) -> Iterator[_Drawn]:
    """Yield the ways of asking: rightly and wrongly, by any name and by the model's own."""
    right, wrong = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    ways: list[tuple[GenerationMode, dict[str, Any]]] = [(right, {})]
    if operation.path == _BENCH:
        ways = [(right, {"query": {"iterations": 1}}), (wrong, {"query": {"batch_sizes": "1"}})]
    elif operation.body or operation.query:  # any name in a path is a right one
        ways.append((wrong, {}))
    if "{name}" in operation.path:
        own = {"path_parameters": {"name": model, "version": interface.VERSION}}
        ways += [(mode, own) for mode in ((right, wrong) if operation.body else (right,))]
    weight = (_WITH_BODY if operation.body else 1) / len(ways)
    for mode, fixed in ways:
        most = _BENCHES if operation.path == _BENCH else None
        yield _Drawn(operation.label, operation.as_strategy(mode, **fixed), weight, most)


class _Fuzzed:
    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []

    def send(self, drawn: Sequence[_Drawn], examples: int, seed: int) -> None:
        """Send about so many requests."""
        weights = sum(one.weight for one in drawn)
        for one in drawn:
            share = math.ceil(examples * one.weight / weights)
            self._send_some(one, share if one.most is None else min(share, one.most), seed)

    def _send_some(self, drawn: _Drawn, examples: int, seed: int) -> None:
        @seeded(seed)
        @settings(FUZZING, max_examples=examples)
        @given(drawn.cases)
        def once(case: Case[Any]) -> None:
            self._call(drawn.label, case)

        try:
            once()
        except Unsatisfiable:
            pass  # what has one value that is right cannot be asked wrongly
        except (FailureGroup, requests.RequestException, AssertionError) as error:
            found = error.exceptions if isinstance(error, FailureGroup) else [error]
            self.failures += [f"{drawn.label}: {failure!s:.{_REPORTED}}" for failure in found]

    def _call(self, label: str, case: Case[Any]) -> None:
        response = case.call(base_url=self._url, session=self._session, timeout=_TIMEOUT_S)
        self.requests[label] += 1
        self.statuses[response.status_code] += 1
        case.validate_response(response, checks=_CHECKS)
