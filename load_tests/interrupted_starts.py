"""Start the service many times, and end each start with SIGTERM at a random moment."""

import random
import shutil
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
_ALLOWED: Final = {0, -signal.SIGTERM}
_RANGE: Final = 1.2
"""The moments are from the start of the process to this multiple of the time until it is ready."""


@dataclass(frozen=True)
class InterruptedStarts:
    """What the processes did: how often each ended with which status, and the slowest end.

    Each process that broke a guarantee left its log in the folder of the reports.

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
        return [
            Check("no process serves on", str(self.served_on), not self.served_on),
            Check(
                f"each ends within {_MAX_END_S:g} s",
                f"slowest {self.slowest_s:.2f} s",
                self.slowest_s < _MAX_END_S,
            ),
            Check("each ends with status 0 or by the signal", statuses, set(self.statuses) <= _ALLOWED),
            Check("no traceback", str(self.tracebacks), not self.tracebacks),
        ]


def run_interrupted_starts(
    command: Sequence[str],
    environment: Mapping[str, str],
    starts: int,
    output: Path,
    *,
    seed: int = 0,
    show_progress: bool = False,
) -> InterruptedStarts:
    """Start `command`, which serves, `starts` times, and send SIGTERM at random moments.

    Each start has an empty cache, so that models are converted. The log of a start that breaks a guarantee is
    kept in `output`, an existing folder. Raises LoadTestError if the service does not start without an
    interruption.
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
    for number in tqdm(range(starts), unit="start", disable=not show_progress):
        delay_s = generator.uniform(0, _RANGE * ready_s)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            status, end_s = _interrupt_start(
                command, {**environment, "XDG_CACHE_HOME": f"{folder}/cache"}, log, delay_s
            )
            has_traceback = "Traceback" in log.read_text(encoding="utf-8")
            if status not in _ALLOWED or has_traceback or end_s >= _MAX_END_S:
                shutil.copy(log, output / f"start-{number}-status-{status}-after-{end_s:.2f}-s.log")
        if status is None:
            served_on += 1
        else:
            statuses[status] += 1
        tracebacks += has_traceback
        slowest_s = max(slowest_s, end_s)
    return InterruptedStarts(ready_s, statuses, tracebacks, served_on, slowest_s)


def _interrupt_start(
    command: Sequence[str], environment: Mapping[str, str], log: Path, delay_s: float
) -> tuple[int | None, float]:
    """Start `command` and send SIGTERM after `delay_s` seconds.

    Return the status, None if the process still ran after 20 s, and the seconds from SIGTERM to its end.
    """
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr, env=environment) as process:
        time.sleep(delay_s)
        process.terminate()
        signaled_at = time.monotonic()
        try:
            status: int | None = process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = None
        return status, time.monotonic() - signaled_at
