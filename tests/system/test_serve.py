"""`resnet-service serve` as a process: its start, its rejections to start, and its end."""

import gzip
import http.server
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
import torch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from torchvision.models import resnet18

from tests.support.file_server import FileServer
from tests.support.processes import COMMAND, environment, events, rejected, started, until


def heaps(process: "subprocess.Popen[str]") -> int:
    """Count glibc's heaps of single threads: each begins a room of 64 MiB, whose rest is reserved."""
    ranges = []
    for line in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8").splitlines():
        place, mode = line.split()[:2]
        begin, end = (int(address, 16) for address in place.split("-"))
        ranges.append((begin, end, mode))
    room = 64 * 2**20
    return sum(
        used == "rw-p" and rest == "---p" and begin % room == 0 and middle == again and end - begin == room
        for (begin, middle, used), (again, end, rest) in pairwise(ranges)
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has a heap for each thread")
@pytest.mark.parametrize("each_its_own", [False, True])
def test_threads_share_one_heap(each_its_own: bool, jpeg: bytes) -> None:
    """What one thread gives back another can use, unless the operator says otherwise."""
    variables = {"MALLOC_ARENA_MAX": "99"} if each_its_own else {}
    with started(program=None, limit=None, **variables) as (process, _, url):
        for _ in range(4):
            httpx.post(f"{url}/predict", files={"file": jpeg}).raise_for_status()
        assert (heaps(process) > 0) == each_its_own


def test_sigterm_under_load_loses_nothing(jpeg: bytes) -> None:
    """From SIGTERM on, requests already sent are answered and later ones find nobody; exit status 0."""
    with started() as (process, log, url):
        answered: Counter[int] = Counter()

        def client() -> None:
            with httpx.Client(base_url=url, timeout=30) as session:
                while True:
                    try:
                        response = session.post("/predict", files={"file": jpeg})
                    except httpx.ConnectError:
                        return  # nobody listens any more: nothing was accepted, nothing is lost
                    answered[response.status_code] += 1
                    if answered.total() == 1000:
                        process.send_signal(signal.SIGTERM)

        with ThreadPoolExecutor(16) as pool:
            for finished in [pool.submit(client) for _ in range(16)]:
                finished.result()  # raises what a client met but a clean rejection
        assert process.wait(30) == 0
        assert set(answered) == {200}
        assert answered.total() >= 1000
        assert until(log, "stopped")


def test_the_access_log_says_what_happened(jpeg: bytes) -> None:
    """One line for a request has its ids, its status, its sizes and the time of each stage."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-ID": "mine"}
    with started("--access-log") as (_, log, url):
        answer = httpx.post(f"{url}/predict", files={"file": jpeg}, headers=headers)
        line = until(log, "request")
        assert (line["request_id"], line["trace_id"]) == ("mine", trace)
        assert (line["method"], line["route"], line["status"]) == ("POST", "/predict", 200)
        assert line["bytes_in"] > len(jpeg)
        assert line["bytes_out"] == len(answer.content)
        stages = [line[f"{stage}_ms"] for stage in ("read", "decode", "queue", "device")]
        assert 0 < sum(stages) < line["ms"]
        for broken in ("00-" + 32 * "0" + "-00f067aa0ba902b7-01", "nonsense"):
            httpx.get(f"{url}/healthz", headers={"traceparent": broken})
            assert "trace_id" not in until(log, "request")


class Collector(http.server.BaseHTTPRequestHandler):
    """Keeps the spans it is sent, as an OpenTelemetry collector would."""

    spans: ClassVar[list[Span]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for traced in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in traced.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_traces_reach_a_collector(jpeg: bytes) -> None:
    """A request is a span under the caller's, with a child for each stage; all are sent before the end."""
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    Collector.spans.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{collector.server_address[1]}/v1/traces"
        with started("--traces-url", url) as (process, _, service):
            headers = {"traceparent": f"00-{trace}-{caller}-01"}
            httpx.post(f"{service}/predict", files={"file": jpeg}, headers=headers)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        collector.shutdown()
        thread.join()
    spans = {span.name: span for span in Collector.spans if span.trace_id.hex() == trace}
    request = spans.pop("POST /predict")
    assert request.parent_span_id.hex() == caller
    assert set(spans) == {"read", "decode", "queue", "device"}
    for span in spans.values():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano


def test_a_collector_that_is_not_there_harms_nobody(jpeg: bytes) -> None:
    """Without its collector the service answers, and ends as it should."""
    with started("--traces-url", "http://127.0.0.1:9/v1/traces", OTEL_EXPORTER_OTLP_TIMEOUT="1") as (
        process,
        _,
        url,
    ):
        assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_weights_are_downloaded_and_served(file_server: FileServer, tmp_path: Path, jpeg: bytes) -> None:
    """A URL's weights are fetched into torch's cache and answer with the published labels."""
    torch.save(resnet18().state_dict(), file_server.folder / "net.pth")
    flags = ("--model", "resnet18", "--weights", f"{file_server.url}/net.pth")
    for _ in range(2):
        with started(*flags, TORCH_HOME=str(tmp_path / "cache")) as (_, _, url):
            answer = httpx.post(f"{url}/predict?top_k=1000", files={"file": jpeg}).json()
            assert answer["model"] == "resnet18"
            assert "golden retriever" in {prediction["label"] for prediction in answer["predictions"]}
    assert file_server.requests == ["/net.pth"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_service(number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end an idle service with status 0, open connections notwithstanding."""
    with started() as (process, _, url), httpx.Client(base_url=url) as client:
        assert client.get("/healthz").status_code == 200
        process.send_signal(number)
        assert process.wait(30) == 0


def test_sigterm_ends_a_service_that_is_still_loading() -> None:
    """While the weights are on their way, SIGTERM ends the start at once, with status 0."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth"
        command = [*COMMAND, "--model", "resnet18", "--weights", url]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment()) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0


STUCK = """
import sys
import threading
from resnet_service.log_config import configure_logging
from resnet_service.server.run import run_server
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings

configure_logging(style="json")
service = load(Settings(model="bundled", port=0, drain_timeout_s=4, streams_per_device=1))
[runtime] = service.engine.runtimes
run = runtime.run

def stuck(crops, k):
    if k > 1:  # an image, not the warm-up
        threading.Event().wait()
    return run(crops, k)

runtime.run = stuck
sys.exit(run_server(service))
"""


def test_a_stuck_device_does_not_hold_up_the_end(jpeg: bytes) -> None:
    """With a batch that never ends, SIGTERM still ends the process within the drain limit, as failed."""
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            log = events(process)
            url = until(log, "serving")["url"]
            until(log, "ready")
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(httpx.post, f"{url}/predict", files={"file": jpeg}, timeout=60)
                while "inference_queue_depth 0.0" not in (text := httpx.get(f"{url}/metrics").text) or (
                    "inference_in_flight 1.0" not in text
                ):
                    pass  # until the image is on the device
                process.send_signal(signal.SIGTERM)
                assert process.wait(15) == 1
                assert answer.result().status_code == 503
                assert answer.result().headers["content-type"] == "application/problem+json"
        finally:
            process.kill()


def test_a_port_that_is_taken() -> None:
    """A port in use is said so, with status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "in use" in rejected("--model", "bundled", "--port", port, status=1)


def test_a_model_that_cannot_be_had(tmp_path: Path) -> None:
    """Without a network, resnet50 stops the start with one message that names the ways out, status 3."""
    message = rejected(
        "--port", "0", status=3, TORCH_HOME=str(tmp_path), https_proxy="http://127.0.0.1:9", no_proxy=""
    )
    assert "cannot load the model 'resnet50'" in message
    assert "--model bundled" in message
    assert "--weights" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "http"], "port"),
        (["--max-batch", "0"], "max_batch"),
        (["--max-megapixels", "inf"], "max_megapixels"),
        (["--precision", "int3"], "precision"),
        (["--unheard-of", "1"], "--unheard-of"),
    ],
)
def test_a_wrong_setting(flags: list[str], words: str) -> None:
    """A setting that cannot be is a usage error that names it, status 2."""
    assert words in rejected(*flags, status=2)


def test_a_wrong_environment_variable() -> None:
    """The same for a setting from the environment."""
    assert "max_queue" in rejected(status=2, RESNET_SERVICE_MAX_QUEUE="none")


def test_a_device_that_is_missing() -> None:
    """A forced device that is not there stops the start with status 3."""
    assert "cuda:99" in rejected("--model", "bundled", "--devices", "cuda:99", status=3).replace(
        "cuda was", "cuda:99"
    )


def test_a_flag_wins_over_the_environment(tmp_path: Path) -> None:
    """Settings come from the environment, and a flag is stronger."""
    message = rejected(
        "--model", str(tmp_path / "flag.safetensors"), status=3, RESNET_SERVICE_MODEL="variable"
    )
    assert "flag.safetensors" in message
    assert "variable" not in message
    assert "variable" in rejected(status=3, RESNET_SERVICE_MODEL="variable")


def test_an_empty_variable_counts_as_not_given() -> None:
    """RESNET_SERVICE_WEIGHTS= as compose files leave it behind, changes nothing."""
    with started(RESNET_SERVICE_WEIGHTS="", RESNET_SERVICE_PORT="") as (_, _, url):
        assert httpx.get(f"{url}/readyz").status_code == 200
