"""Compare the protocols: images/s and CPU time per image of the same JPEG file over REST and over gRPC."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from load_tests.h2load import posting
from load_tests.service import LoadTestError
from resnet_service.server.rpc.protocol import open_inference_pb2 as messages
from resnet_service.server.v2.schemas import CLASS_ID_OUTPUT, IMAGE_INPUT, LABEL_OUTPUT, PROBABILITY_OUTPUT

PREDICT: Final = "/predict, raw body"
V2: Final = "/v2, binary data"
GRPC: Final = "gRPC"
GRPC_SHARED: Final = "gRPC, one connection"
REST: Final = (PREDICT, V2)

_OUTPUTS: Final = (CLASS_ID_OUTPUT, LABEL_OUTPUT, PROBABILITY_OUTPUT)
"""What the response of /predict has."""
_SETTLE_S: Final = 1.0
"""Before each measurement."""
_IDLE_TIMEOUT_S: Final = 60.0


class Subject(NamedTuple):
    """A service to measure: its URL, the address of its port for gRPC, and its process."""

    url: str
    grpc_url: str
    pid: int


@dataclass(frozen=True)
class Request:
    """A prepared request, which h2load sends; with `shares_connection`, all clients have one connection."""

    name: str
    url: str
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    http2: bool = False
    shares_connection: bool = False


@dataclass(frozen=True)
class Run:
    """One measurement: images/s, and milliseconds of CPU time per image of the service and of h2load."""

    images_per_s: float
    server_ms: float
    client_ms: float


Results = Mapping[str, Sequence[Run]]
"""By request; the runs with the same index are of the same round."""


def requests(subject: Subject, image: bytes) -> Iterator[Request]:
    """Yield the requests with this image, over REST and over gRPC."""
    model: str = httpx.get(f"{subject.url}/info").json()["model"]
    yield Request(PREDICT, f"{subject.url}/predict", image, {"content-type": "image/jpeg"})
    element = len(image).to_bytes(4, "little") + image
    tensor: dict[str, Any] = {"name": IMAGE_INPUT, "datatype": "BYTES", "shape": [1]}
    outputs = [{"name": name} for name in _OUTPUTS]
    message = json.dumps(
        {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(element)}}],
            "outputs": outputs,
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(message)),
    }
    yield Request(V2, f"{subject.url}/v2/models/{model}/infer", message + element, headers)
    request = messages.ModelInferRequest(
        model_name=model, inputs=[tensor], outputs=outputs, raw_input_contents=[element]
    )
    encoded: bytes = request.SerializeToString()
    frame = b"\0" + len(encoded).to_bytes(4, "big") + encoded  # not compressed
    headers = {"content-type": "application/grpc", "te": "trailers"}
    url = f"http://{subject.grpc_url}/inference.GRPCInferenceService/ModelInfer"
    yield Request(GRPC, url, frame, headers, http2=True)
    yield Request(GRPC_SHARED, url, frame, headers, http2=True, shares_connection=True)


def measure(subject: Subject, request: Request, clients: int, seconds: float, folder: Path) -> Run:
    """Send a request from this number of clients for `seconds`; its body becomes a file in `folder`.

    Raises LoadTestError if an image gets no result, or if earlier requests do not end.
    """
    _wait_until_idle(subject.url)
    body = folder / "request-body"
    body.write_bytes(request.content)
    connections, calls = (1, clients) if request.shares_connection else (clients, 1)
    with posting(
        request.url, body, request.headers, connections=connections, calls=calls, http2=request.http2
    ) as client:
        time.sleep(_SETTLE_S)
        processes = [psutil.Process(subject.pid), *psutil.Process(subject.pid).children(recursive=True)]
        before, images_before, started = (
            _cpu_s([client], processes),
            _images(subject.url),
            time.perf_counter(),
        )
        time.sleep(seconds)
        after, images_after, ended = _cpu_s([client], processes), _images(subject.url), time.perf_counter()
    counts = {outcome: count - images_before[outcome] for outcome, count in images_after.items()}
    images = counts.pop("ok", 0)
    if not images or any(counts.values()):
        raise LoadTestError(f"{request.name}: {images:.0f} images got a result, others: {counts}")
    client_ms, server_ms = ((end - start) * 1e3 / images for start, end in zip(before, after, strict=True))
    return Run(images / (ended - started), server_ms, client_ms)


def ratio(results: Results, name: str, other: str) -> float:
    """Return the images/s of a request, relative to those of another: the median over the rounds."""
    runs = zip(results[name], results[other], strict=True)
    return median(run.images_per_s / other_run.images_per_s for run, other_run in runs)


def table(results: Results) -> str:
    """Return the medians over the rounds as a Markdown table."""
    columns = [
        "request",
        "images/s",
        *(f"relative to {name}" for name in REST),
        "CPU of the service, ms per image",
        "CPU of the client, ms per image",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, runs in results.items():
        values = [f"{median(run.images_per_s for run in runs):.1f}"]
        values += [f"{ratio(results, name, other):.2f}" for other in REST]
        values += [f"{median(run.server_ms for run in runs):.2f}"]
        values += [f"{median(run.client_ms for run in runs):.2f}"]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def missed_targets(results: Results, min_ratio: float) -> list[str]:
    """Return where gRPC has fewer images/s than this ratio of those of REST."""
    ratios = {(name, other): ratio(results, name, other) for name in (GRPC, GRPC_SHARED) for other in REST}
    return [
        f"{name} has {value:.2f} of the images/s of {other}, less than {min_ratio:g}"
        for (name, other), value in ratios.items()
        if value < min_ratio
    ]


def to_json(results: Results) -> dict[str, Any]:
    """Return all runs by request, and the ratios of images/s to those of REST."""
    return {
        name: {
            "runs": [asdict(run) for run in runs],
            "ratios": {other: ratio(results, name, other) for other in REST},
        }
        for name, runs in results.items()
    }


def _cpu_s(*groups: Sequence[psutil.Process]) -> list[float]:
    """Return the CPU seconds of each group of processes so far."""
    return [
        sum(sum(process.cpu_times()[:2]) for process in group)  # user and system, without children
        for group in groups
    ]


def _wait_until_idle(url: str) -> None:
    """Wait until the requests of the run before, whose client has gone, have ended."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while any(value for _, value in _samples(url, "inference_in_flight")):
        if time.monotonic() > deadline:
            raise LoadTestError(f"{url} still works on requests after {_IDLE_TIMEOUT_S:g} s")
        time.sleep(0.1)


def _images(url: str) -> Mapping[str, int]:
    """Return the number of images by outcome."""
    images: Counter[str] = Counter()  # over all models
    for labels, value in _samples(url, "inference_images_total"):
        images[labels["outcome"]] += int(value)
    return images


def _samples(url: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and values of a metric."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return [
        (sample.labels, sample.value)
        for family in families
        for sample in family.samples
        if sample.name == name
    ]
