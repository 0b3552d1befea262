"""Models that are loaded, reloaded and unloaded under load: what the others notice, and the memory."""

import asyncio
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import psutil

from load_tests.http_connection import Request, post_request
from load_tests.images import encoded_images
from load_tests.load_generator import LoadGenerator, run_async
from load_tests.report import Check
from load_tests.request_log import BoolArray, RequestLog
from load_tests.service import LoadTestError
from resnet_service.models import CIFAR10, weights_path

KEPT, RELOADED, ADDED = "kept", "reloaded", "added"
"""The models: one does not change, one is reloaded, and one is added and later unloaded."""

_VERSIONS: Final = ("1", "2")
_KINDS: Final = tuple(f"{name}/{version}" for name in (KEPT, RELOADED) for version in _VERSIONS)
_LOADS: Final = 2
_KEY: Final = "load-test-0123456789"
_HEADERS: Final = {"X-API-Key": _KEY}
_CHANGE_TIMEOUT_S: Final = 300.0
_SAMPLE_S: Final = 1.0
_STABLE_SAMPLES: Final = 4
_STABLE_MB: Final = 1.0
_MAX_SAMPLES: Final = 30

_MIN_RETURNED: Final = 0.9
_MAX_P99_FACTOR: Final = 2.0
_P99_MARGIN_MS: Final = 20.0


@dataclass(frozen=True)
class Change:
    """A load or unload: its name, and when it began and ended, in seconds on the clock of the log."""

    name: str
    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Memory:
    """The memory of all processes in MB (10^6 bytes): before a load, with the model, and after its unload."""

    before: float
    loaded: float
    after: float

    def __str__(self) -> str:
        returned, grown = self.loaded - self.after, self.loaded - self.before
        return (
            f"{self.before:,.0f} MB, {self.loaded:,.0f} MB with the model, {self.after:,.0f} MB afterwards: "
            f"{returned:,.0f} of {grown:,.0f} MB returned"
        )


@dataclass(frozen=True)
class ModelsResult:
    """All requests, and what was changed meanwhile.

    The model `added` is loaded and unloaded twice: at the first time, the service may also load the code that
    converts networks, which stays.
    """

    log: RequestLog
    reload: Change
    loads: tuple[Change, ...]
    unloads: tuple[Change, ...]
    memory: tuple[Memory, ...]

    def measurements(self) -> Iterator[tuple[str, str]]:
        """Yield (name, value) of each measurement."""
        for kind in _KINDS:
            for phase, mask in self._phases().items():
                p50, p99 = (self._latency_ms(kind, mask, percent) for percent in (50, 99))
                count = int((mask & self.log.has_kind(kind)).sum())
                yield f"{kind}, {phase}", f"{count:,} requests, p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        for change in (self.reload, *self.loads, *self.unloads):
            yield change.name, f"{change.ended_s - change.began_s:.2f} s"
        for number, memory in enumerate(self.memory, 1):
            yield f"memory, load {number}", str(memory)

    def checks(self) -> Iterator[Check]:
        """Yield each guarantee with its measured value."""
        log, phases = self.log, self._phases()
        for kind in _KINDS:
            sent = log.has_kind(kind)
            lost = int((sent & ~log.has_status(200)).sum())
            yield Check(f"{kind}: no request is lost", f"{lost} of {int(sent.sum()):,}", not lost)
        for kind in _KINDS:
            before_ms, after_ms = (self._latency_ms(kind, phases[phase], 99) for phase in ("before", "after"))
            yield Check(
                f"{kind}: p99 afterwards is as before",
                f"{before_ms:.0f} ms, then {after_ms:.0f} ms",
                after_ms <= _MAX_P99_FACTOR * before_ms + _P99_MARGIN_MS,
            )
        sent = log.has_kind(ADDED)
        results, missing = sent & log.has_status(200), sent & log.has_status(404)
        wrong = int((sent & ~results & ~(missing & ~self._while_loaded())).sum())
        yield Check(
            f"{ADDED}: each request has a result, or 404 while the model is not loaded",
            f"{wrong} of {int(sent.sum()):,} do not; {int(results.sum()):,} results",
            not wrong and bool(results.any()),
        )
        memory = self.memory[-1]
        share = (memory.loaded - memory.after) / (memory.loaded - memory.before)
        yield Check(
            f"at least {_MIN_RETURNED:.0%} of the memory of a model returns after its unload",
            f"{share:.0%}",
            share >= _MIN_RETURNED,
        )

    def _latency_ms(self, kind: str, mask: BoolArray, percent: float) -> float:
        return self.log.latency(percent, mask & self.log.has_kind(kind)) * 1e3

    def _phases(self) -> dict[str, BoolArray]:
        due_s, end_s = self.log.due_s, self.unloads[-1].ended_s
        phases = {"before": due_s < self.reload.began_s}
        for name, changes in (("reload", [self.reload]), ("load", self.loads), ("unload", self.unloads)):
            within = [(due_s >= change.began_s) & (due_s < change.ended_s) for change in changes]
            phases[f"during {name}"] = np.any(within, axis=0)
        return {**phases, "after": due_s >= end_s}

    def _while_loaded(self) -> BoolArray:
        """Return for each request whether the model `added` was loaded from its start to its end."""
        log = self.log
        during = np.zeros(len(log), np.bool_)
        for load, unload in zip(self.loads, self.unloads, strict=True):
            during |= (log.due_s >= load.ended_s) & (log.done_s < unload.began_s)
        return during


def write_repository(folder: Path) -> tuple[str, ...]:
    """Write the models that serve from the start, with two versions each, and return the flags of `serve`."""
    models, keys = folder / "models", folder / "keys"
    keys.write_text(f"{_KEY} admin\n", encoding="utf-8")
    for name in (KEPT, RELOADED):
        for version in _VERSIONS:
            path = models / name / version
            path.mkdir(parents=True, exist_ok=True)
            shutil.copy(weights_path(CIFAR10), path)
    files = ("--model-repository", str(models), "--api-keys-file", str(keys))
    return (*files, "--public-scopes", "predict,metrics")


def run_models(url: str, pid: int, folder: Path, weights: Path, rate: float, seconds: float) -> ModelsResult:
    """Send `rate` requests/s to each version for `seconds` before and after the changes of the models.

    `folder` is that of `write_repository`, for the service with the process id `pid`. A ResNet-50 with these
    weights is added to it. Raises LoadTestError if a change fails.
    """
    return run_async(_Run(url, pid, folder, weights).run(rate, seconds))


class _Run:
    def __init__(self, url: str, pid: int, folder: Path, weights: Path) -> None:
        self._url = url
        self._process = psutil.Process(pid)
        self._folder = folder / "models"
        self._weights = weights
        self._is_done = False

    async def run(self, rate: float, seconds: float) -> ModelsResult:
        loads, unloads, memory = [], [], []
        async with (
            LoadGenerator(self._url) as generator,
            httpx.AsyncClient(base_url=self._url, timeout=_CHANGE_TIMEOUT_S, headers=_HEADERS) as client,
        ):
            self._generator, self._client = generator, client
            sending = asyncio.create_task(generator.run_open_loop(self._plan(rate)))
            try:
                await asyncio.sleep(seconds)
                reload = await self._change(RELOADED, "load")
                self._add_model()
                for _ in range(_LOADS):
                    before = await self._stable_memory_mb()
                    loads.append(await self._change(ADDED, "load"))
                    await asyncio.sleep(seconds / _LOADS)
                    loaded = await self._stable_memory_mb()
                    unloads.append(await self._change(ADDED, "unload"))
                    memory.append(Memory(before, loaded, await self._stable_memory_mb()))
                await asyncio.sleep(seconds)
            finally:
                self._is_done = True
                await sending
        log = generator.log(generator.elapsed_s)
        return ModelsResult(log, reload, tuple(loads), tuple(unloads), tuple(memory))

    def _plan(self, rate: float) -> Iterator[tuple[float, Request]]:
        """Yield a request to each version in turn, until the run is done."""
        paths = {kind: "/predict?model={}&version={}".format(*kind.split("/")) for kind in _KINDS}
        paths[ADDED] = f"/predict?model={ADDED}"
        images = encoded_images("typical")
        requests = [
            post_request(self._url, image, kind, path) for image in images for kind, path in paths.items()
        ]
        for number, request in enumerate(itertools.cycle(requests)):
            if self._is_done:
                return
            yield number / (rate * len(paths)), request

    async def _change(self, name: str, operation: str) -> Change:
        began_s = self._generator.elapsed_s
        response = await self._client.post(f"/v2/repository/models/{name}/{operation}")
        if response.status_code != 200:
            raise LoadTestError(f"the {operation} of {name} failed: {response.text}")
        return Change(f"{operation} of {name}", began_s, self._generator.elapsed_s)

    def _add_model(self) -> None:
        folder = self._folder / f".{ADDED}"
        version = folder / "1"
        version.mkdir(parents=True)
        shutil.copy(self._weights, version / "weights.pth")
        (version / "model.yaml").write_text("model: resnet50\nweights: weights.pth\n", encoding="utf-8")
        folder.rename(self._folder / ADDED)

    async def _stable_memory_mb(self) -> float:
        """Return the memory of all processes of the service, once it does not change any more."""
        samples = [self._memory_mb()]
        for _ in range(_MAX_SAMPLES):
            await asyncio.sleep(_SAMPLE_S)
            samples.append(self._memory_mb())
            latest = samples[-_STABLE_SAMPLES:]
            if len(latest) == _STABLE_SAMPLES and max(latest) - min(latest) < _STABLE_MB:
                break
        return samples[-1]

    def _memory_mb(self) -> float:
        processes = (self._process, *self._process.children(recursive=True))
        return sum(float(process.memory_full_info().pss) for process in processes) / 1e6
