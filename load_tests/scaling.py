"""CPU time per request of HTTP workers and of the main process, and the capacity of hosts from it."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil

from load_tests.images import encode_jpeg
from load_tests.metrics import read_samples
from load_tests.service import run_service, write_random_weights
from load_tests.wrk import run_wrk

SIZES: Final = ((64, 48), (840, 630))
"""In pixels: 1 KB and 146 KB."""
CORES: Final = (4, 8, 16, 32, 64)

_CONNECTIONS: Final = 64
_WARM_UP_S: Final = 2
_WHOLE_BATCHES: Final = {"RESNET_SERVICE_MAX_WAIT_MS": "50", "RESNET_SERVICE_MAX_BATCH": "32"}
_GPU_MAIN_CORES: Final = 2
"""As `count_workers` in `resnet_service.server.state`."""
_MAX_WORKERS: Final = 16
_CORES_PER_WORKER: Final = 4


@dataclass(frozen=True)
class CPUTimes:
    """Microseconds of CPU per request without a network, and the requests per second.

    loop_us: the event loops of the workers.
    decode_us: their decoding threads, and everything else in them.
    main_us: the main process; 0 without workers.
    batch: images per batch.
    """

    image: str
    workers: int
    rate_rps: float
    loop_us: float
    decode_us: float
    main_us: float
    batch: float

    @property
    def total_us(self) -> float:
        """All processes together."""
        return self.loop_us + self.decode_us + self.main_us


@dataclass(frozen=True)
class Capacity:
    """The computed requests per second of a host, and what limits them."""

    cores: int
    workers: int
    rate_rps: float
    limit: str


def measure(
    size: tuple[int, int], workers: int, output: Path, seconds: int, *, whole_batches: bool
) -> CPUTimes:
    """Load a service without a network, and return its CPU time per request.

    With `whole_batches`, batches have 32 images. Raises LoadTestError.
    """
    image = output / f"scaling-{size[0]}.jpg"
    image.write_bytes(encode_jpeg(size))
    settings = _WHOLE_BATCHES if whole_batches else {}
    connections = 2 * _CONNECTIONS if whole_batches else _CONNECTIONS
    with service_without_network(output, {"RESNET_SERVICE_WORKERS": str(workers), **settings}) as (url, pid):
        run_wrk(f"{url}/predict", image, "multipart", connections, _WARM_UP_S)
        main = psutil.Process(pid)
        processes = main.children() if workers else [main]
        before = [_cpu_s(process) for process in (main, *processes)]
        batches, images = _batches(url)
        rate_rps = run_wrk(f"{url}/predict", image, "multipart", connections, seconds)["rate"]
        after = [_cpu_s(process) for process in (main, *processes)]
        now_batches, now_images = _batches(url)
    used = [
        (loop_after - loop_before, rest_after - rest_before)
        for (loop_before, rest_before), (loop_after, rest_after) in zip(before, after, strict=True)
    ]
    per_request = 1e6 / (now_images - images)
    return CPUTimes(
        image=f"{image.stat().st_size / 1e3:.0f} KB",
        workers=workers,
        rate_rps=rate_rps,
        loop_us=sum(loop for loop, _ in used[1:]) * per_request,
        decode_us=sum(rest for _, rest in used[1:]) * per_request,
        main_us=sum(used[0]) * per_request if workers else 0.0,
        batch=(now_images - images) / (now_batches - batches),
    )


@contextmanager
def service_without_network(output: Path, settings: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Start a service whose network computes nothing, and yield its URL and process id.

    `settings` are environment variables.
    """
    environment = {
        **os.environ,
        **settings,
        "WEIGHTS": str(write_random_weights(output).absolute()),
        "PORT": "0",
    }
    command = [sys.executable, "-m", "load_tests.peers.servers.this_service"]
    with run_service(command, output / "scaling.log", environment) as (url, process):
        yield url, process.pid


def gpu_capacity(cores: int, times: CPUTimes, engine_us: float) -> Capacity:
    """Return the requests per second of a host whose GPU is not the limit.

    `engine_us` is the CPU time of the main process per image in batches of 32.
    """
    workers = min(_MAX_WORKERS, max(1, cores - _GPU_MAIN_CORES))
    limits = {
        "event loops": workers * 1e6 / times.loop_us,
        "cores": cores * 1e6 / (times.loop_us + times.decode_us + engine_us),
        "main process": 1e6 / engine_us,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Capacity(cores, workers, limits[limit], limit)


def cpu_capacity(cores: int, times: CPUTimes, engine_us: float, network_us: float) -> Capacity:
    """Return the requests per second of a host without a GPU; the network takes `network_us` per image."""
    workers = cores // _CORES_PER_WORKER if cores > _CORES_PER_WORKER else 0
    limits = {
        "event loops": max(1, workers) * 1e6 / times.loop_us,
        "cores": cores * 1e6 / (times.loop_us + times.decode_us + engine_us + network_us),
    }
    limit = min(limits, key=lambda name: limits[name])
    return Capacity(cores, workers, limits[limit], limit)


def times_table(rows: Sequence[CPUTimes]) -> str:
    """Return the measurements as a Markdown table."""
    lines = [
        "| image | workers | requests/s | loop, us | decoding, us | main process, us | sum, us | batch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.image} | {row.workers} | {row.rate_rps:,.0f} | {row.loop_us:.0f} | {row.decode_us:.0f} | "
        f"{row.main_us:.0f} | {row.total_us:.0f} | {row.batch:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def capacity_table(rows: Sequence[tuple[Capacity, Capacity]]) -> str:
    """Return the capacity of hosts with and without a GPU as a Markdown table."""
    lines = ["| cores | with a GPU: workers | requests/s | limit | without: workers | requests/s | limit |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [
        f"| {gpu.cores} | {gpu.workers} | {gpu.rate_rps:,.0f} | {gpu.limit} | {cpu.workers} | "
        f"{cpu.rate_rps:,.0f} | {cpu.limit} |"
        for gpu, cpu in rows
    ]
    return "\n".join(lines)


def measure_network_us(weights: Path) -> float:
    """Return the CPU time of a ResNet-50 per image, in batches of 16 on the CPU, in microseconds."""
    import numpy as np

    from resnet_service.devices import choose_devices
    from resnet_service.models import ModelSource, load_model
    from resnet_service.runtimes.selection import create_runtimes

    model = load_model(ModelSource("resnet50", str(weights)))
    [runtime] = create_runtimes(model, choose_devices("cpu"), streams_per_device=1)
    crop = np.zeros((model.preprocessing.crop, model.preprocessing.crop, 3), np.uint8)
    runtime.run([crop] * 16, 1)
    started = time.process_time()
    for _ in range(10):
        runtime.run([crop] * 16, 1)
    return (time.process_time() - started) / 160 * 1e6


def _cpu_s(process: psutil.Process) -> tuple[float, float]:
    """Return the CPU seconds of the main thread, and of all other threads."""
    threads = {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    return threads[process.pid], sum(threads.values()) - threads[process.pid]


def _batches(url: str) -> tuple[float, float]:
    """Return the number of batches and of their images."""
    samples = read_samples(httpx.get(f"{url}/metrics").text)
    return samples["inference_batch_size_count"], samples["inference_batch_size_sum"]
