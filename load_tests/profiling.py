"""Where a request's time goes: the CPU time of each thread, split by what py-spy sees it at."""

import re
import subprocess
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
_MAIN: Final = {
    "read the form": ("python_multipart/", "service/api/uploads"),
    "measure": ("prometheus_client/", "structlog/", "service/api/middleware", "service/metrics"),
    "batch, hand to threads and back": ("service/batching/", "service/threads", "service/engine", "futures/"),
    "write the answer": ("service/api/predict", "pydantic/"),
    "route and validate": ("fastapi/", "starlette/", "service/api/service"),
}
_DECODER: Final = {
    "decode the JPEG": ("_decode_jpeg",),
    "resize and crop": ("service/images/preprocessing",),
}


def profile(
    url: str, pid: int, picture: Path, connections: int, seconds: int
) -> tuple[float, dict[str, float]]:
    """Load the service `pid` at `url` with one picture; return requests/s and each stage's CPU ms a request."""
    figures: dict[str, float] = {}
    lasts = 2 * (seconds + _SETTLING_S)
    loading = threading.Thread(
        target=lambda: figures.update(load(url, picture, "multipart", connections, lasts))
    )
    loading.start()
    time.sleep(_SETTLING_S)
    before, started = _cpu_seconds(pid), time.perf_counter()
    # Python runs where the GIL is held; decoding and the network run without it, and nothing else does.
    held, active = _samples(pid, seconds, "--gil"), _samples(pid, seconds)
    spent, elapsed = _cpu_seconds(pid), time.perf_counter() - started
    loading.join()
    each_ms = 1e3 / (figures["rate"] * elapsed)
    stages: Counter[str] = Counter()
    for thread, seconds_used in spent.items():
        used_ms = (seconds_used - before.get(thread, 0.0)) * each_ms
        name = next((label for label, of in active if of == thread), "")
        if name.startswith("decode"):
            stages.update(_split(used_ms, active, thread, _DECODER, "read the header, check limits"))
        elif name.startswith("device"):
            stages["network"] += used_ms
        elif name.startswith("Main"):
            stages.update(_split(used_ms, held, thread, _MAIN, "HTTP, sockets, event loop"))
        else:
            stages["network"] += used_ms  # its own threads, which Python does not know
    return figures["rate"], dict(stages)


def _cpu_seconds(pid: int) -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}


_Samples = Mapping[tuple[str, int], Counter[tuple[str, ...]]]


def _samples(pid: int, seconds: int, *options: str) -> _Samples:
    """Record stacks, outermost frame first, and how often each was seen, by thread: its name and number."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        command = ["py-spy", "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(_RATE_HZ)]
        subprocess.run(
            [*command, "--format", "raw", "--threads", "--nonblocking", "--output", str(raw), *options],
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


def _split(
    used_ms: float, samples: _Samples, thread: int, stages: Mapping[str, tuple[str, ...]], rest: str
) -> dict[str, float]:
    """Share the time of a thread out among the stages that it was seen at."""
    seen: Counter[str] = Counter()
    for (_, number), stacks in samples.items():
        if number == thread:
            for frames, count in stacks.items():
                seen[_stage(frames, stages, rest)] += count
    total = seen.total() or 1
    return {stage: used_ms * count / total for stage, count in seen.items()}


def _stage(frames: tuple[str, ...], stages: Mapping[str, tuple[str, ...]], rest: str) -> str:
    for frame in reversed(frames):
        for stage, names in stages.items():
            if any(name in frame for name in names):
                return stage
    return rest
