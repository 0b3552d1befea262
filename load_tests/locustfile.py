"""Locust's side: one user who sends what the scenario says when it is due, and judges the answers.

`python -m load_tests` starts it; with a service of your own, `locust -f load_tests/locustfile.py --headless
--host http://localhost:8000 --scenario steady --capacity 300` works too.
"""

import csv
import logging
import random
import re
import time
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import gevent
from gevent import socket
from gevent.pool import Group
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from load_tests.images import payloads
from load_tests.scenarios import SCENARIOS, Kind, level

COLUMNS: Final = ("due_s", "late_ms", "kind", "outcome", "latency_ms", "decode_ms", "queue_ms", "device_ms")
"""Of a run's CSV, a line for each request: when it was due, how much later it was sent, what came of it.

The outcome is answered, rejected (429 with Retry-After), invalid (a 4xx that a bad image deserves), hung
up, or failed. The latency counts from when the request was due.
"""

_log: Final = logging.getLogger(__name__)

_CONNECTIONS: Final = 4096
_LONGEST_PATIENCE_S: Final = 0.02
"""A client that hangs up waits up to this long: most answers of a service under load come later."""


class _Planned(NamedTuple):
    due_s: float
    kind: Kind
    content: bytes
    patience_s: float


def _options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("resnet-service")
    group.add_argument("--scenario", choices=[*SCENARIOS, "level", "capacity"], default="steady")
    group.add_argument("--capacity", type=float, default=100.0, help="requests/s that the service can do")
    group.add_argument(
        "--share", type=float, default=0.6, help="for level: the rate as a share of the capacity"
    )
    group.add_argument("--clients", type=int, default=64, help="for capacity: clients that wait for answers")
    group.add_argument("--seconds", type=float, default=30.0, help="how long it lasts")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--images", type=Path, help="a folder of JPEGs instead of drawn ones")
    group.add_argument("--requests", type=Path, help="where to write a line for each request, as CSV")


events.init_command_line_parser.add_listener(_options)


class Client(FastHttpUser):
    """Sends every request of the scenario; there is one of it, with as many connections as it takes."""

    wait_time = constant(0)
    fixed_count = 1
    concurrency = _CONNECTIONS
    connection_timeout = network_timeout = 60.0

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        assert options is not None, "locust has a command line"
        self._options = options
        self._chance = random.Random(options.seed)
        self._rows: list[tuple[object, ...]] = []

    @task
    def run_scenario(self) -> None:
        """Run it once, wait for the last answers, and end the test; an error ends it with status 2."""
        options = self._options
        try:
            if options.scenario == "capacity":
                self._saturate(options.seconds, options.clients)
            else:
                scenario = SCENARIOS.get(options.scenario) or level(options.share)
                self._follow(scenario.lasting(options.seconds).arrivals(options.capacity, options.seed))
            if options.requests:
                with options.requests.open("w", newline="") as file:
                    csv.writer(file).writerows([COLUMNS, *sorted(self._rows, key=itemgetter(0))])
        except Exception:  # noqa: BLE001
            # Locust would log it and begin the task again, for ever.
            _log.exception("the scenario could not be run")
            self.environment.process_exit_code = 2
        assert self.environment.runner is not None
        gevent.spawn(self.environment.runner.quit)
        gevent.sleep(60)  # until it ends this greenlet

    def _follow(self, arrivals: Iterable[tuple[float, Kind]]) -> None:
        """Send each request when it is due, whatever became of the others."""
        due = list(arrivals)
        contents = {kind: payloads(kind, self._options.images) for kind in {kind for _, kind in due}}
        plan = [
            _Planned(
                second,
                kind,
                self._chance.choice(contents[kind]),
                self._chance.uniform(0, _LONGEST_PATIENCE_S),
            )
            for second, kind in due
        ]
        waiting = Group()
        began = time.perf_counter()
        for planned in plan:
            gevent.sleep(max(0, began + planned.due_s - time.perf_counter()))
            waiting.spawn(self._hang_up if planned.kind == "hang-up" else self._send, began, planned)
        waiting.join(raise_error=True)

    def _saturate(self, seconds: float, clients: int) -> None:
        """Keep the service busy with a closed loop: what it answers a second is its capacity."""
        contents = payloads("typical", self._options.images)
        began = time.perf_counter()

        def loop() -> None:
            while (now := time.perf_counter() - began) < seconds:
                self._send(began, _Planned(now, "typical", self._chance.choice(contents), 0))

        waiting = Group()
        for _ in range(clients):
            waiting.spawn(loop)
        waiting.join(raise_error=True)

    def _send(self, began: float, planned: _Planned) -> None:
        late_ms = self._since(began, planned)
        with self.client.post(
            "/predict",
            data=planned.content,  # type: ignore[arg-type] # bytes are what it sends
            headers={"Content-Type": "image/jpeg"},
            name=planned.kind,
            catch_response=True,
        ) as answer:
            latency_ms = self._since(began, planned)
            headers = answer.headers or {}
            outcome = _outcome(planned.kind, answer.status_code, "Retry-After" in headers)
            answer.request_meta["response_time"] = latency_ms
            if outcome == "failed":
                answer.failure(
                    f"{answer.status_code} for a {planned.kind} image: {answer.error or answer.text}"
                )
            else:
                answer.request_meta["name"] = f"{planned.kind}: {outcome}"
                answer.success()
        stages = dict(re.findall(r"(\w+);dur=([\d.]+)", headers.get("Server-Timing", "")))
        timings = (stages.get(stage) for stage in ("decode", "queue", "device"))
        self._rows.append((planned.due_s, late_ms, planned.kind, outcome, latency_ms, *timings))

    def _hang_up(self, began: float, planned: _Planned) -> None:
        """Send a whole request, and close the connection while it is queued or worked on."""
        late_ms = self._since(began, planned)
        url = urlsplit(str(self.host))
        if url.scheme != "http" or url.hostname is None:
            raise ValueError(f"clients that hang up speak http only, not {self.host}")
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(planned.content)}\r\n\r\n"
        )
        error: OSError | None = None
        try:
            with socket.create_connection((url.hostname, url.port or 80), timeout=10) as connection:
                connection.sendall(head.encode() + planned.content)
                gevent.sleep(planned.patience_s)
        except OSError as failed:
            error = failed
        self.environment.events.request.fire(
            request_type="POST",
            name="hang-up",
            response_time=self._since(began, planned),
            response_length=0,
            exception=error,
            context={},
        )
        outcome = "failed" if error else "hung up"
        self._rows.append((planned.due_s, late_ms, planned.kind, outcome, None, None, None, None))

    @staticmethod
    def _since(began: float, planned: _Planned) -> float:
        return (time.perf_counter() - began - planned.due_s) * 1e3


def _outcome(kind: Kind, status: int, says_when: bool) -> str:
    """Judge an answer; `says_when` is whether it has Retry-After."""
    if status == 429 and says_when:
        return "rejected"
    if kind == "bad":
        return "invalid" if 400 <= status < 500 else "failed"
    return "answered" if status == 200 else "failed"
