"""Start the service many times, and end each start with SIGTERM at a random moment."""

import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

from load_tests.report import Check
from load_tests.service import run_service

_MAX_END_S: Final = 2.0
_TIMEOUT_S: Final = 20.0
_RANGE: Final = 1.2
"""The moments are from the start of the process to this multiple of the time until it is ready."""


@dataclass(frozen=True)
class InterruptedStarts:
    """What the processes did: how often each ended with which status, and the slowest end.

    ready_s: seconds until the service is ready, in a start that is not interrupted.
    statuses: of all processes that ended, and the negative number of the signal that ended one.
    tracebacks: the processes that wrote one.
    served_on: the processes that still ran after 20 s.
    slowest_s: seconds from SIGTERM to the end of the process.
    """

    ready_s: float
    statuses: Counter[int]
    tracebacks: int
    served_on: int
    slowest_s: float

    def checks(self) -> list[Check]:
        """Return the guarantees and whether they were met."""
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        allowed = {0, -signal.SIGTERM}
        return [
            Check("no process serves on", str(self.served_on), not self.served_on),
            Check(
                f"each ends within {_MAX_END_S:g} s",
                f"slowest {self.slowest_s:.2f} s",
                self.slowest_s < _MAX_END_S,
            ),
            Check("each ends with status 0 or by the signal", statuses, allowed >= set(self.statuses)),
            Check("no traceback", str(self.tracebacks), not self.tracebacks),
        ]


def run_interrupted_starts(
    command: Sequence[str],
    environment: Mapping[str, str],
    starts: int,
    *,
    seed: int = 0,
    show_progress: bool = False,
) -> InterruptedStarts:
    """Start `command`, which serves, `starts` times, and send SIGTERM at random moments.

    Each start has an empty cache, so that models are converted. Raises LoadTestError if the service does not
    start without an interruption.
    """
    generator = random.Random(seed)
    statuses: Counter[int] = Counter()
    tracebacks = served_on = 0
    slowest_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        started_at = time.monotonic()
        with run_service(command, log, {**environment, "XDG_CACHE_HOME": f"{folder}/cache"}):
            ready_s = time.monotonic() - started_at
    for _ in tqdm(range(starts), unit="start", disable=not show_progress):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, stderr=output, env={**environment, "XDG_CACHE_HOME": f"{folder}/cache"}
                )
            with process:
                time.sleep(generator.uniform(0, _RANGE * ready_s))
                process.terminate()
                signaled_at = time.monotonic()
                try:
                    statuses[process.wait(_TIMEOUT_S)] += 1
                except subprocess.TimeoutExpired:
                    served_on += 1
                    process.kill()
                slowest_s = max(slowest_s, time.monotonic() - signaled_at)
            tracebacks += "Traceback" in log.read_text(encoding="utf-8")
    return InterruptedStarts(ready_s, statuses, tracebacks, served_on, slowest_s)
