"""Fuzz the HTTP API with requests that follow the OpenAPI document, and requests that violate it."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from statistics import median
from typing import Any, Final

import requests
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckContext, CheckFunction, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.transport.serialization import Binary

from load_tests.fuzz.corpus import corpus
from load_tests.fuzz.strategies import FUZZING, seeded
from load_tests.health_prober import HealthProber, resident_mb
from resnet_service.models.model import FIRST_VERSION


def _no_server_error(ctx: CheckContext, response: Response, case: Case[Any]) -> bool | None:
    """Fail for a 5xx except 504, which a request gets that asks for a timeout of a millisecond."""
    return (
        None
        if response.status_code == HTTPStatus.GATEWAY_TIMEOUT
        else not_a_server_error(ctx, response, case)
    )


_CHECKS: Final[list[CheckFunction]] = [
    _no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_TIMEOUT_S: Final = 60
_BENCH: Final = "/bench"
_BENCH_REQUESTS: Final = 1
"""Maximum of valid and of invalid requests to /bench per round; some of them run a benchmark."""
_ROUNDS: Final = 10
"""Memory is read after each round; one more round, before the others, is the warm-up."""
_BODY_WEIGHT: Final = 10
"""An operation with a body gets this many times as many requests as one without."""
_MAX_FAILURE_CHARS: Final = 500


@dataclass(frozen=True)
class ApiFuzzResult:
    """Requests by operation, responses by status, and the failed checks of responses.

    `memory_mb` is the service's memory after each round, in 10^6 bytes. `probes`, `slowest_probe_ms` and
    `failed_probes` are about /healthz meanwhile.
    """

    requests: dict[str, int]
    statuses: dict[int, int]
    seconds: float
    failures: list[str]
    memory_mb: list[float]
    probes: int
    slowest_probe_ms: float
    failed_probes: int

    @property
    def total(self) -> int:
        """The number of requests."""
        return sum(self.requests.values())

    @property
    def growth_mb(self) -> float:
        """The growth of the service's memory: the median of the second half of the rounds less the first's.

        Medians, because memory varies with the pixels of the largest images in progress.
        """
        half = len(self.memory_mb) // 2
        return median(self.memory_mb[half:]) - median(self.memory_mb[:half])


def fuzz_api(url: str, examples: int, pid: int, *, seed: int = 0, rounds: int = _ROUNDS) -> ApiFuzzResult:
    """Send about `examples` requests in `rounds` rounds to all operations of the service at `url`.

    Half of the requests follow the OpenAPI document and half violate it; images come from the corpus. Each
    response must have a documented status, content type and schema, and must not be a 5xx, except 504 for a
    request that asks for a short timeout. With `seed` 0 each run is different. `pid` is the service's
    process. It must not be this process, because hypothesis controls the random numbers of its process.
    """
    images = [Binary(data) for _, data in corpus() if len(data) <= 100_000]
    binary = st.one_of(st.sampled_from(images), st.binary(max_size=1000).map(Binary))
    schemathesis.openapi.format("binary", binary)
    for media_type in ("image/*", "application/octet-stream"):
        schemathesis.openapi.media_type(media_type, binary.map(lambda image: image.data))
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    model: str = requests.get(f"{url}/info", timeout=_TIMEOUT_S).json()["model"]
    sources = [source for operation in operations for source in _request_sources(operation, model)]
    examples_per_round = math.ceil(examples / rounds)
    _ApiFuzzer(url).send(sources, examples_per_round, seed)
    fuzzer = _ApiFuzzer(url)
    memory_mb = []
    started = time.perf_counter()
    with HealthProber(url) as prober:
        for number in range(1, rounds + 1):
            fuzzer.send(sources, examples_per_round, seed and seed + number)
            memory_mb.append(resident_mb(pid))
    return ApiFuzzResult(
        requests=dict(fuzzer.requests),
        statuses=dict(fuzzer.statuses),
        seconds=time.perf_counter() - started,
        failures=fuzzer.failures,
        memory_mb=memory_mb,
        probes=prober.probes,
        slowest_probe_ms=prober.slowest_ms,
        failed_probes=prober.failures,
    )


@dataclass(frozen=True)
class _RequestSource:
    """Draws requests of one kind to an operation; `weight` is relative to those of other sources."""

    label: str
    cases: st.SearchStrategy[Case[Any]]
    weight: float
    max_per_round: int | None


def _request_sources(operation: Any, model: str) -> Iterator[_RequestSource]:
    """Yield the sources of an operation: valid and invalid, with any model name and with the served one."""
    valid, invalid = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    kinds: list[tuple[GenerationMode, dict[str, Any]]] = [(valid, {})]
    if operation.path == _BENCH:
        kinds = [(valid, {"query": {"iterations": 1}}), (invalid, {"query": {"batch_sizes": "1"}})]
    elif operation.body or operation.query:  # every name in a path is valid
        kinds.append((invalid, {}))
    if "{name}" in operation.path:
        served = {"path_parameters": {"name": model, "version": FIRST_VERSION}}
        kinds += [(mode, served) for mode in ((valid, invalid) if operation.body else (valid,))]
    weight = (_BODY_WEIGHT if operation.body else 1) / len(kinds)
    for mode, parameters in kinds:
        limit = _BENCH_REQUESTS if operation.path == _BENCH else None
        yield _RequestSource(operation.label, operation.as_strategy(mode, **parameters), weight, limit)


class _ApiFuzzer:
    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []

    def send(self, sources: Sequence[_RequestSource], examples: int, seed: int) -> None:
        """Send about this many requests, at least one from each source."""
        total_weight = sum(source.weight for source in sources)
        for source in sources:
            share = math.ceil(examples * source.weight / total_weight)
            limit = share if source.max_per_round is None else min(share, source.max_per_round)
            self._send_from(source, limit, seed)

    def _send_from(self, source: _RequestSource, examples: int, seed: int) -> None:
        @seeded(seed)
        @settings(FUZZING, max_examples=examples)
        @given(source.cases)
        def call(case: Case[Any]) -> None:
            self._call(source.label, case)

        try:
            call()
        except Unsatisfiable:
            pass  # an operation may have no invalid request
        except (FailureGroup, requests.RequestException, AssertionError) as error:
            failures = error.exceptions if isinstance(error, FailureGroup) else [error]
            self.failures += [f"{source.label}: {failure!s:.{_MAX_FAILURE_CHARS}}" for failure in failures]

    def _call(self, label: str, case: Case[Any]) -> None:
        response = case.call(base_url=self._url, session=self._session, timeout=_TIMEOUT_S)
        self.requests[label] += 1
        self.statuses[response.status_code] += 1
        case.validate_response(response, checks=_CHECKS)
