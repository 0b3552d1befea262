"""Profile a service under load: the CPU time of each thread, divided among stages by py-spy's samples."""

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

from load_tests.wrk import run_wrk

_SAMPLE_RATE_HZ: Final = 400
_SETTLE_S: Final = 2
_NETWORK: Final = "network"
_DECODE: Final = "decode, resize and crop"
_EVENT_LOOP: Final = "HTTP, sockets, event loop"

# A sample belongs to the stage of its innermost frame that matches, else to the event loop.
_STAGES: Final = {
    "read the form": ("python_multipart/", "resnet_service/server/uploads"),
    "metrics and logs": (
        "prometheus_client/",
        "structlog/",
        "resnet_service/server/middleware",
        "resnet_service/metrics",
    ),
    "batching and hand-over to threads": (
        "resnet_service/batching/",
        "resnet_service/inference/worker_pool",
        "resnet_service/inference/engine",
        "futures/",
    ),
    "write the response": ("resnet_service/server/routes/", "pydantic/"),
    "route and validate": ("fastapi/", "starlette/", "resnet_service/server/state"),
}

_Samples = Mapping[tuple[str, int], Counter[tuple[str, ...]]]
"""By thread (name, id): stacks, outermost frame first, and their number of samples."""


def profile(
    url: str, pid: int, image: Path, connections: int, seconds: int
) -> tuple[float, dict[str, float]]:
    """Load the service `pid` at `url` with one image; return requests/s and CPU ms per request by stage."""
    figures: dict[str, float] = {}
    load_s = seconds + 2 * _SETTLE_S
    load = threading.Thread(
        target=lambda: figures.update(run_wrk(url, image, "multipart", connections, load_s))
    )
    load.start()
    time.sleep(_SETTLE_S)
    cpu_before_s, started = _cpu_seconds(pid), time.perf_counter()
    samples = _record_samples(pid, seconds)
    cpu_after_s, elapsed_s = _cpu_seconds(pid), time.perf_counter() - started
    load.join()
    requests = figures["rate"] * elapsed_s
    names = {thread: name for name, thread in samples}
    stages_ms: dict[str, float] = {}
    for thread, cpu_s in cpu_after_s.items():
        used_ms = (cpu_s - cpu_before_s.get(thread, 0.0)) / requests * 1e3
        name = names.get(thread, "")
        if name.startswith("Main"):
            shares = _stage_shares(samples[name, thread])
        elif name.startswith("decode"):
            shares = {_DECODE: 1.0}
        else:
            shares = {_NETWORK: 1.0}  # threads of the device and its runtime, which never hold the GIL
        for stage, share in shares.items():
            stages_ms[stage] = stages_ms.get(stage, 0.0) + used_ms * share
    return figures["rate"], stages_ms


def _cpu_seconds(pid: int) -> dict[int, float]:
    """Return the CPU time of each thread of the process."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}


def _record_samples(pid: int, seconds: int) -> _Samples:
    """Record the stacks of threads while they hold the GIL.

    Without that condition a thread that waits for the GIL would count as busy.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "raw"
        py_spy = str(Path(sys.executable).parent / "py-spy")
        command = [py_spy, "record", "--pid", str(pid), "--duration", str(seconds)]
        subprocess.run(
            [
                *(*command, "--rate", str(_SAMPLE_RATE_HZ), "--format", "raw"),
                *("--threads", "--nonblocking", "--gil", "--output", str(output)),
            ],
            check=True,
            capture_output=True,
        )
        lines = output.read_text(encoding="utf-8").splitlines()
    samples: dict[tuple[str, int], Counter[tuple[str, ...]]] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        match = re.fullmatch(r"thread \((\d+)\): (.*)", thread)
        if match:
            key = match[2], int(match[1])
            samples.setdefault(key, Counter())[tuple(frames)] += int(count)
    return samples


def _stage_shares(stacks: Counter[tuple[str, ...]]) -> dict[str, float]:
    """Return the share of each stage in the samples of the event loop's thread, 0..1."""
    samples: Counter[str] = Counter()
    for frames, count in stacks.items():
        samples[_stage_of(frames)] += count
    return {stage: count / samples.total() for stage, count in samples.items()}


def _stage_of(frames: tuple[str, ...]) -> str:
    for frame in reversed(frames):
        for stage, paths in _STAGES.items():
            if any(path in frame for path in paths):
                return stage
    return _EVENT_LOOP
