"""What only a GPU can show: correctness and speed of each precision, serving with workers, training.

Needs no network: the weights are random or in the package, and data comes from local folders.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import resnet_service
from load_tests.service import LoadTestError, run_service, serve_command, write_random_weights
from load_tests.wrk import require_wrk, run_wrk
from resnet_service.devices import choose_devices
from resnet_service.errors import DeviceOutOfMemoryError, ServiceError
from resnet_service.images import Crop, decode_image
from resnet_service.machine import has_native_bf16
from resnet_service.models import Model, ModelSource, load_model
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.selection import create_runtimes

Precision = Literal["fp32", "tf32", "fp16", "bf16"]

_MAX_DIFFERENCE: Final[dict[Precision, float]] = {"fp32": 1e-4, "tf32": 0.01, "fp16": 0.01, "bf16": 0.05}
"""Largest difference of a probability from that of the CPU in fp32."""
_MIN_SIMILARITY: Final = 0.999
"""Smallest cosine similarity of an embedding to that of the CPU in fp32."""
_CPU_PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16")
_GPU_PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "tf32", "fp16", "bf16")
_FREE_BYTES: Final = 600_000_000
"""Device memory that is left for batches in the check of running out of memory."""
_REPETITIONS: Final = 10
"""Runs of each variant: the first one records the CUDA graph."""
_FULL_CONNECTIONS: Final = 256
_HALF: Final = 0.6
"""A load counts as half if its rate is at most this share of the full one."""
_TIMEOUT_S: Final = 600
_PHOTOGRAPHS: Final = Path(resnet_service.__file__).parent / "images" / "photographs"


class Row(NamedTuple):
    """One line of the table; `passed` is None for a figure without a limit."""

    name: str
    value: str
    passed: bool | None = None


@dataclass(frozen=True)
class GPUCheck:
    """The sizes of all measurements.

    images: folder of JPEG files: requests carry one of about 146 KB, and batch inference reads all.
    data: what to train on, as `train --data`: "cifar10" or a folder; None: no training.
    workers: the numbers of HTTP workers; 0 is one process.
    accuracy: least test accuracy of the training, 0 to 1.
    """

    device: str
    model: str
    output: Path
    images: Path
    data: str | None
    workers: Sequence[int]
    batch_sizes: Sequence[int]
    seconds: int
    epochs: int | None
    accuracy: float

    def run(self, report: Callable[[Row], None]) -> list[Row]:
        """Run all sections; `report` gets each row at once. A section that fails has a row that says why."""
        require_wrk()
        self.output.mkdir(parents=True, exist_ok=True)
        rows = []
        for section in (
            self._correctness,
            self._memory,
            self._engine,
            self._serving,
            self._batch,
            self._training,
        ):
            try:
                for row in section():
                    rows.append(row)
                    report(row)
            except (ServiceError, LoadTestError, subprocess.SubprocessError, RuntimeError) as error:
                rows.append(Row(section.__name__.strip("_"), f"{type(error).__name__}: {error}"[:300], False))
                report(rows[-1])
        return rows

    @property
    def _weights(self) -> Path | None:
        return write_random_weights(self.output) if self.model == "resnet50" else None

    @property
    def _is_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def _precisions(self) -> tuple[Precision, ...]:
        return _GPU_PRECISIONS if self._is_gpu else _CPU_PRECISIONS

    def _runtimes(self, model: Model, precision: Precision, **options: Any) -> list[Runtime]:
        devices = choose_devices(self.device)
        return create_runtimes(model, devices, name="torch", precision=precision, **options)

    def _correctness(self) -> Iterator[Row]:
        """Compare the probabilities and embeddings of photographs with those of the CPU in fp32."""
        model = load_model("cifar10")
        paths = sorted(_PHOTOGRAPHS.glob("*.jpg"))
        crops = [decode_image(path.read_bytes(), model.preprocessing) for path in paths]
        [reference] = create_runtimes(
            model, choose_devices("cpu"), name="torch", precision="fp32", streams_per_device=1
        )
        expected = _probabilities(reference, crops, len(model.labels))
        expected_embeddings = _embeddings(reference, crops)
        variants: list[tuple[Precision, bool, int]] = [(precision, True, 1) for precision in self._precisions]
        if self._is_gpu:
            variants += [("fp16", False, 1), ("fp16", True, 2)]
        for precision, graphs, streams in variants:
            runtimes = self._runtimes(model, precision, cuda_graphs=graphs, streams_per_device=streams)

            def difference_of(runtime: Runtime) -> float:
                found = [_probabilities(runtime, crops, len(model.labels)) for _ in range(_REPETITIONS)]
                return max(float(np.abs(probabilities - expected).max()) for probabilities in found)

            with ThreadPoolExecutor(len(runtimes)) as pool:  # a thread per stream, at the same time
                difference = max(pool.map(difference_of, runtimes))
            graph = f", CUDA graphs {'on' if graphs else 'off'}, streams: {streams}"
            options = graph if self._is_gpu else ""
            limit = _MAX_DIFFERENCE[precision]
            yield Row(
                f"{precision}{options}: difference from the CPU in fp32",
                f"{difference:.1e} (limit {limit:g})",
                difference <= limit,
            )
            products = (_embeddings(runtimes[0], crops) * expected_embeddings).sum(1)
            yield Row(
                f"{precision}{options}: cosine similarity of embeddings to the CPU in fp32",
                f"{products.min():.4f} (limit {_MIN_SIMILARITY:g})",
                bool(products.min() >= _MIN_SIMILARITY),
            )

    def _memory(self) -> Iterator[Row]:
        """Fill the device, so that a large batch does not fit and a smaller one does."""
        if not self._is_gpu:
            yield Row("out of memory", "only on a GPU")
            return
        model = load_model(ModelSource("resnet50", str(write_random_weights(self.output))))
        [runtime] = self._runtimes(model, "fp32", streams_per_device=1, cuda_graphs=False)
        crop = np.zeros((model.preprocessing.crop, model.preprocessing.crop, 3), np.uint8)
        runtime.run([crop], 1)
        free, _ = torch.cuda.mem_get_info()
        filler = torch.empty(max(0, free - _FREE_BYTES), dtype=torch.uint8, device=self.device)
        try:
            runtime.run([crop] * 1024, 1)
            large = "a batch of 1,024 fits"
        except DeviceOutOfMemoryError:
            large = "a batch of 1,024 does not fit"
        best = runtime.run([crop] * 4, 1)
        del filler
        torch.cuda.empty_cache()
        yield Row("out of memory", f"{large}, one of 4 does", "not" in large and len(best.class_ids) == 4)

    def _engine(self) -> Iterator[Row]:
        """Images/s of the network alone. A CPU without native bf16 runs only fp32."""
        precisions = self._precisions if self._is_gpu or has_native_bf16() else ("fp32",)
        flags = ["--device", self.device, "--precision", ",".join(precisions), "--json"]
        flags += ["--batch-sizes", ",".join(map(str, self.batch_sizes)), "--model", self.model]
        flags += ["--weights", str(self._weights)] if self._weights else []
        for line in json.loads(_command("bench", *flags))["model"]:
            name = f"{self.model}, {line['variant']['precision']}, batches of {line['batch_size']}"
            yield Row(name, f"{line['images_per_second']:,.0f} images/s, p99 {line['p99_ms']:.1f} ms")

    def _serving(self) -> Iterator[Row]:
        """Start-up time, and requests/s with each number of workers at full and at half load."""
        image = min(self.images.rglob("*.jp*g"), key=lambda path: abs(path.stat().st_size - 146_000))
        size = f"{image.stat().st_size / 1e3:.0f} KB"
        weights = None if self._weights is None else str(self._weights)
        for workers in self.workers:
            flags = ("--device", self.device, "--workers", str(workers), "--max-batch", "64")
            command = serve_command(self.model, weights, *flags)
            started = time.perf_counter()
            with run_service(command, self.output / f"serve-{workers}.log") as (url, _):
                name = f"{workers} workers" if workers else "one process"
                yield Row(f"{name}: start-up", f"{time.perf_counter() - started:.1f} s")
                connections = _FULL_CONNECTIONS
                full = self._load(url, image, connections)
                half = full
                while half["rate"] > _HALF * full["rate"] and connections > 1:
                    connections //= 2
                    half = self._load(url, image, connections)
                yield _load_row(f"{name}, {size}, {_FULL_CONNECTIONS} connections", full)
                yield _load_row(f"{name}, {size}, {connections} connections", half)

    def _load(self, url: str, image: Path, connections: int) -> dict[str, float]:
        return run_wrk(f"{url}/predict", image, "multipart", connections, self.seconds, threads=4)

    def _batch(self) -> Iterator[Row]:
        """Images/s of batch inference over the folder."""
        with tempfile.TemporaryDirectory() as results:
            flags = ["--device", self.device, "--model", self.model, "--output", results, "--json"]
            flags += ["--weights", str(self._weights)] if self._weights else []
            summary = json.loads(_command("batch", str(self.images), *flags).splitlines()[-1])
        value = f"{summary['images_per_second']:,.0f} images/s, {summary['images']:,} images"
        yield Row(f"batch inference, {self.model}", value)

    def _training(self) -> Iterator[Row]:
        """Train a ResNet-18 with its recipe, for CIFAR-10."""
        if self.data is None:
            yield Row("training", "no data (--data)")
            return
        epochs = [] if self.epochs is None else ["--epochs", str(self.epochs)]
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            flags = ["--data", self.data, "--output", str(run), "--device", self.device, "--json", *epochs]
            log = json.loads(_command("train", *flags).splitlines()[-1])
        value = f"{log['accuracy']:.2%} after {log['seconds']:.0f} s"
        yield Row(f"training on {Path(self.data).name}", value, log["accuracy"] >= self.accuracy)


def table(rows: Sequence[Row], hardware: str) -> str:
    """Return the rows as Markdown, with the machine."""
    words = {True: "passed", False: "**failed**", None: ""}
    lines = [hardware, "", "| measurement | value | |", "|---|---|---|"]
    return (
        "\n".join([*lines, *(f"| {row.name} | {row.value} | {words[row.passed]} |" for row in rows)]) + "\n"
    )


def _probabilities(runtime: Runtime, crops: Sequence[Crop], classes: int) -> npt.NDArray[np.float32]:
    """Return the probabilities of all classes, [N, classes], in the order of the classes."""
    best = runtime.run(crops, classes)
    ordered = np.zeros_like(best.probabilities)
    np.put_along_axis(ordered, best.class_ids, best.probabilities, 1)
    return ordered


def _embeddings(runtime: Runtime, crops: Sequence[Crop]) -> npt.NDArray[np.float32]:
    """Return the embeddings [N, D], of the length 1."""
    embeddings = runtime.run(crops, 1, with_embeddings=True).embedding
    assert embeddings is not None
    normalized: npt.NDArray[np.float32] = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return normalized


def _load_row(name: str, figures: dict[str, float]) -> Row:
    latency = f"p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms"
    return Row(name, f"{figures['rate']:,.0f} requests/s, {latency}", not figures["failed"])


def _command(name: str, *flags: str) -> str:
    """Run a command of the service and return what it prints. Raises LoadTestError if it fails."""
    command = [sys.executable, "-m", "resnet_service", name, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise LoadTestError(f"{name} ended with status {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout
