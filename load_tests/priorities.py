"""Interactive requests beside bulk ones that saturate the device, and the share that bulk gets."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Final

import httpx

from load_tests.http_connection import Request, batch_request, post_request
from load_tests.images import encoded_images
from load_tests.load_generator import LoadGenerator, arrival_times, measure_capacity, run_async
from load_tests.metrics import read_samples
from load_tests.report import Check
from load_tests.request_log import RequestLog
from resnet_service.batching import BULK_INTERVAL

_CAPACITY_S: Final = 5.0
_INTERACTIVE_SHARE: Final = 0.1
"""Rate of the interactive requests as a share of the capacity: a device that only they use is idle mostly."""
_IMAGES_PER_BULK_REQUEST: Final = 8
_BULK_CLIENTS: Final = 16
_INTERACTIVE_CLIENTS: Final = 64
"""In the run in which interactive requests saturate the device as well."""
_WARM_UP: Final = 0.2
"""Share of each run that does not count for images/s."""

_MAX_P99_FACTOR: Final = 2.5
_MIN_SHARE: Final = 0.9 / BULK_INTERVAL
"""Bulk images of all images: one of eight, less what is in progress at the end of the run."""


@dataclass(frozen=True)
class PrioritiesResult:
    """The same service under four loads.

    alone, beside: interactive requests at a low rate, without and with bulk ones that saturate the device.
    bulk: bulk requests alone.
    saturated: more interactive requests than the device can run, beside bulk ones.
    batch_s: seconds of a device batch while bulk requests saturate the device.
    """

    alone: RequestLog
    beside: RequestLog
    bulk: RequestLog
    saturated: RequestLog
    batch_s: float

    def measurements(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) of each measurement."""
        for name, log in (("alone", self.alone), ("beside bulk requests", self.beside)):
            mask = log.has_kind("interactive") & log.has_status(200)
            p50, p99 = (log.latency(percent, mask) * 1e3 for percent in (50, 99))
            yield f"interactive, {name}", f"{log.rate(mask):.1f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        yield "bulk alone", f"{self._images(self.bulk, 'bulk'):.0f} images/s"
        yield "bulk beside interactive requests", f"{self._images(self.beside, 'bulk'):.0f} images/s"
        both = ", ".join(
            f"{kind} {self._images(self.saturated, kind):.0f}" for kind in ("interactive", "bulk")
        )
        yield "both saturate the device, images/s", both
        yield "batch while bulk saturates the device", f"{self.batch_s * 1e3:.0f} ms"

    def checks(self) -> Iterator[Check]:
        """Yield each guarantee with its measured value."""
        interactive = self.beside.has_kind("interactive")
        failed = int((interactive & ~self.beside.has_status(200)).sum())
        yield Check(
            "every interactive request succeeds beside bulk ones",
            f"{failed} of {int(interactive.sum()):,} failed",
            not failed,
        )
        alone_s = self.alone.latency(99, self.alone.has_status(200))
        beside_s = self.beside.latency(99, interactive & self.beside.has_status(200))
        yield Check(
            f"p99 of interactive requests beside bulk ones is at most {_MAX_P99_FACTOR:g} times that alone, "
            "plus one batch",
            f"{beside_s * 1e3:.0f} ms, alone {alone_s * 1e3:.0f} ms, batch {self.batch_s * 1e3:.0f} ms",
            beside_s <= _MAX_P99_FACTOR * alone_s + self.batch_s,
        )
        images = {kind: self._images(self.saturated, kind) for kind in ("interactive", "bulk")}
        share = images["bulk"] / sum(images.values())
        yield Check(
            f"bulk gets about one of {BULK_INTERVAL} images or more while interactive requests saturate the "
            "device",
            f"{share:.1%}",
            share >= _MIN_SHARE,
        )

    def _images(self, log: RequestLog, kind: str) -> float:
        """Return the images/s of a kind that were classified."""
        requests = log.rate(log.has_kind(kind) & log.has_status(200), _WARM_UP * log.seconds)
        return requests * (_IMAGES_PER_BULK_REQUEST if kind == "bulk" else 1)


def run_priorities(url: str, seconds: float, share: float = _INTERACTIVE_SHARE) -> PrioritiesResult:
    """Measure each of the four loads for `seconds`.

    `share` is the rate of the interactive requests that do not saturate the device, as a share of the
    capacity. Raises LoadTestError if the service is not usable.
    """
    images = encoded_images("typical")
    interactive = [post_request(url, image, "interactive") for image in images]
    bulk = [batch_request(url, (images * _IMAGES_PER_BULK_REQUEST)[:_IMAGES_PER_BULK_REQUEST], "bulk")]
    rate = share * measure_capacity(url, interactive, _INTERACTIVE_CLIENTS, _CAPACITY_S)
    return run_async(_run(url, interactive, bulk, rate, seconds))


async def _run(
    url: str, interactive: list[Request], bulk: list[Request], rate: float, seconds: float
) -> PrioritiesResult:
    async def measure(*, at_rate: bool = False, clients: int = 0, bulk_clients: int = 0) -> RequestLog:
        async with LoadGenerator(url) as load, asyncio.TaskGroup() as group:
            if at_rate:
                plan = zip(arrival_times(rate, seconds, seed=0), cycle(interactive), strict=False)
                group.create_task(load.run_open_loop(plan))
            if clients:
                group.create_task(load.run_closed_loop(interactive, clients, seconds))
            if bulk_clients:
                group.create_task(load.run_closed_loop(bulk, bulk_clients, seconds))
        return load.log(seconds)

    alone = await measure(at_rate=True)
    before = await _batch_totals(url)
    only_bulk = await measure(bulk_clients=_BULK_CLIENTS)
    after = await _batch_totals(url)
    beside = await measure(at_rate=True, bulk_clients=_BULK_CLIENTS)
    saturated = await measure(clients=_INTERACTIVE_CLIENTS, bulk_clients=_BULK_CLIENTS)
    batch_s = (after[0] - before[0]) / (after[1] - before[1])
    return PrioritiesResult(alone, beside, only_bulk, saturated, batch_s)


async def _batch_totals(url: str) -> tuple[float, float]:
    """Return the seconds and the number of all device batches so far."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    samples = read_samples(text)
    return samples["inference_batch_seconds_sum"], samples["inference_batch_seconds_count"]
