"""Where a request's time goes: the CPU time of each thread, split by what py-spy sees it at."""

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from load_tests.wrk import load

_RATE_HZ: Final = 400
_SETTLING_S: Final = 2

# The innermost frame that one of these names decides; what has none is the event loop's.
_STAGES: Final = {
    "read the form": ("python_multipart/", "resnet_service/server/uploads"),
    "measure": (
        "prometheus_client/",
        "structlog/",
        "resnet_service/server/middleware",
        "resnet_service/metrics",
    ),
    "batch, hand to threads and back": (
        "resnet_service/batching/",
        "resnet_service/inference/worker_pool",
        "resnet_service/inference/engine",
        "futures/",
    ),
    "write the answer": ("resnet_service/server/routes/predict", "pydantic/"),
    "route and validate": ("fastapi/", "starlette/", "resnet_service/server/state"),
}


def profile(
    url: str, pid: int, image: Path, connections: int, seconds: int
) -> tuple[float, dict[str, float]]:
    """Load the service `pid` at `url` with one image; return requests/s and CPU ms a request by stage."""
    figures: dict[str, float] = {}
    lasts = seconds + 2 * _SETTLING_S
    loading = threading.Thread(
        target=lambda: figures.update(load(url, image, "multipart", connections, lasts))
    )
    loading.start()
    time.sleep(_SETTLING_S)
    before, started = _cpu_seconds(pid), time.perf_counter()
    held = _samples(pid, seconds)
    spent, elapsed = _cpu_seconds(pid), time.perf_counter() - started
    loading.join()
    each_ms = 1e3 / (figures["rate"] * elapsed)
    names = {number: name for name, number in held}
    stages: dict[str, float] = {}
    for thread, seconds_used in spent.items():
        used_ms = (seconds_used - before.get(thread, 0.0)) * each_ms
        name = names.get(thread, "")
        if name.startswith("Main"):
            shares = _shares(held[name, thread])
        elif name.startswith("decode"):
            shares = {"decode, resize and crop": 1.0}
        else:
            shares = {"network": 1.0}  # the device's thread, and the runtime's, which never hold the GIL
        for stage, share in shares.items():
            stages[stage] = stages.get(stage, 0.0) + used_ms * share
    return figures["rate"], stages


def _cpu_seconds(pid: int) -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}


_Samples = Mapping[tuple[str, int], Counter[tuple[str, ...]]]


def _samples(pid: int, seconds: int) -> _Samples:
    """Record stacks, outermost frame first, and how often each held the GIL, by thread: name and number.

    Without the GIL, a thread that waits for it would seem to be at work.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        py_spy = str(Path(sys.executable).parent / "py-spy")
        command = [py_spy, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(_RATE_HZ)]
        subprocess.run(
            [*command, "--format", "raw", "--threads", "--nonblocking", "--gil", "--output", str(raw)],
            check=True,
            capture_output=True,
        )
        lines = raw.read_text(encoding="utf-8").splitlines()
    samples: dict[tuple[str, int], Counter[tuple[str, ...]]] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        named = re.fullmatch(r"thread \((\d+)\): (.*)", thread)
        if named:
            key = named[2], int(named[1])
            samples.setdefault(key, Counter())[tuple(frames)] += int(count)
    return samples


def _shares(stacks: Counter[tuple[str, ...]]) -> dict[str, float]:
    """Return which share of the event loop's Python each stage is, 0..1."""
    seen: Counter[str] = Counter()
    for frames, count in stacks.items():
        seen[_stage(frames)] += count
    return {stage: count / seen.total() for stage, count in seen.items()}


def _stage(frames: tuple[str, ...]) -> str:
    for frame in reversed(frames):
        for stage, names in _STAGES.items():
            if any(name in frame for name in names):
                return stage
    return "HTTP, sockets, event loop"
