"""Locust's side: one user who sends what the scenario says when it is due, and judges the answers.

`python -m load_tests` starts it; with a service of your own, `locust -f load_tests/locustfile.py --headless
--host http://localhost:8000 --scenario steady --capacity 300` works too.
"""

import csv
import random
import re
import time
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import gevent
from gevent import socket
from gevent.pool import Group
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from load_tests.pictures import Payload, payloads
from load_tests.scenarios import SCENARIOS, Kind, level

COLUMNS: Final = ("due_s", "kind", "status", "latency_ms", "decode_ms", "queue_ms", "device_ms")
"""Of requests.csv: when the request was due, and its answer; status 0 is a request without one."""

_CONNECTIONS: Final = 4096
_CLOSED_LOOP: Final = 64


def _options(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("resnet-service")
    group.add_argument("--scenario", choices=[*SCENARIOS, "level", "capacity"], default="steady")
    group.add_argument("--capacity", type=float, default=100.0, help="requests/s that the service can do")
    group.add_argument(
        "--share", type=float, default=0.6, help="for level: the rate as a share of the capacity"
    )
    group.add_argument("--seconds", type=float, default=30.0, help="how long it lasts")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--pictures", type=Path, help="a folder of JPEGs instead of drawn ones")
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
        self._payloads: dict[Kind, list[Payload]] = {}
        self._chance = random.Random(options.seed)
        self._rows: list[tuple[Any, ...]] = []

    @task
    def run_scenario(self) -> None:
        """Run it once, wait for the last answers, and end the test."""
        options = self._options
        if options.scenario == "capacity":
            self._saturate(options.seconds)
        else:
            scenario = SCENARIOS.get(options.scenario) or level(options.share)
            self._follow(scenario.lasting(options.seconds).arrivals(options.capacity, options.seed))
        if options.requests:
            with options.requests.open("w", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *sorted(self._rows, key=itemgetter(0))])
        runner = self.environment.runner
        if runner is not None:
            gevent.spawn(runner.quit)
            gevent.sleep(60)

    def _follow(self, arrivals: Iterable[tuple[float, Kind]]) -> None:
        """Send each request when it is due, whatever became of the others."""
        planned = list(arrivals)
        self._prepare({kind for _, kind in planned})
        waiting = Group()
        began = time.perf_counter()
        for second, kind in planned:
            gevent.sleep(max(0, began + second - time.perf_counter()))
            waiting.spawn(self._send, began, second, kind)
        waiting.join()

    def _saturate(self, seconds: float) -> None:
        """Keep the service busy with a closed loop: what it answers a second is its capacity."""
        self._prepare({"typical"})
        began = time.perf_counter()

        def loop() -> None:
            while (now := time.perf_counter() - began) < seconds:
                self._send(began, now, "typical")

        waiting = Group()
        for _ in range(_CLOSED_LOOP):
            waiting.spawn(loop)
        waiting.join()

    def _prepare(self, kinds: set[Kind]) -> None:
        self._payloads = {kind: payloads(kind, self._options.pictures) for kind in kinds}

    def _send(self, began: float, due: float, kind: Kind) -> None:
        payload = self._chance.choice(self._payloads[kind])
        if kind == "hang-up":
            self._hang_up(payload)
            self._rows.append((due, kind, 0, None, None, None, None))
            return
        with self.client.post(
            "/predict",
            data=payload.content,  # type: ignore[arg-type] # bytes are what it sends
            headers={"Content-Type": payload.media_type},
            name=kind,
            catch_response=True,
        ) as answer:
            status = answer.status_code
            latency_ms = (time.perf_counter() - began - due) * 1e3
            answer.request_meta["response_time"] = latency_ms
            timing = answer.headers.get("Server-Timing", "") if answer.headers else ""
            stages = dict(re.findall(r"(\w+);dur=([\d.]+)", timing))
            if status == 429 and answer.headers.get("Retry-After"):
                answer.request_meta["name"] = f"{kind} (refused)"
                answer.success()
            elif kind == "bad" and 400 <= status < 500:
                answer.success()
            elif kind == "bad" or status != 200:
                answer.failure(f"status {status} for a {kind} request: {answer.text or answer.error}")
        self._rows.append(
            (due, kind, status, latency_ms, *(stages.get(stage) for stage in ("decode", "queue", "device")))
        )

    def _hang_up(self, payload: Payload) -> None:
        """Send a whole request, and close the connection at a moment before or while it is worked on."""
        address = re.fullmatch(r"https?://\[?([^/]+?)\]?:(\d+)/?", str(self.host))
        assert address, f"a host with a port is needed, not {self.host}"
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {address[1]}\r\nContent-Type: {payload.media_type}\r\n"
            f"Content-Length: {len(payload.content)}\r\n\r\n"
        )
        began = time.perf_counter()
        error: Exception | None = None
        try:
            with socket.create_connection((address[1], int(address[2])), timeout=10) as connection:
                connection.sendall(head.encode() + payload.content)
                gevent.sleep(self._chance.uniform(0, 0.05))
        except OSError as failed:
            error = failed
        self.environment.events.request.fire(
            request_type="POST",
            name="hang-up",
            response_time=(time.perf_counter() - began) * 1e3,
            response_length=0,
            exception=error,
            context={},
        )
