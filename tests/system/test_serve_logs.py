"""The access log and the traces of `resnet-service serve` as a process, and secrets in neither."""

import gzip
import http.server
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.processes import started, until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER_ID}-01"


def test_access_log_has_ids_status_sizes_and_stage_durations(jpeg: bytes) -> None:
    """Each request is one log line; an invalid traceparent adds no trace id."""
    headers = {"traceparent": TRACEPARENT, "X-Request-ID": "mine"}
    with started("--access-log") as (_, log, url):
        response = httpx.post(f"{url}/predict", files={"file": jpeg}, headers=headers)
        line = until(log, "request")
        assert (line["request_id"], line["trace_id"]) == ("mine", TRACE_ID)
        assert (line["method"], line["route"], line["path"], line["status"]) == (
            *("POST", "/predict", "/predict"),
            200,
        )
        assert line["client"] == "127.0.0.1"
        assert not {"key", "error"} & set(line)
        assert line["bytes_in"] > len(jpeg)
        assert line["bytes_out"] == len(response.content)
        stages = [line[f"{stage}_ms"] for stage in ("read", "decode", "queue", "device")]
        assert 0 < sum(stages) < line["ms"]
        for invalid in ("00-" + 32 * "0" + "-00f067aa0ba902b7-01", "nonsense"):
            httpx.get(f"{url}/info", headers={"traceparent": invalid})
            assert "trace_id" not in until(log, "request")


def test_access_log_has_error_kind_and_key_name_of_every_inference_route(jpeg: bytes) -> None:
    """A request with several images has the same stages; an error has its kind; the key has its name only."""
    key = "0123456789abcdef"
    with started("--access-log", RESNET_SERVICE_API_KEYS=f"{key} name=mobile") as (_, log, url):
        headers = {"Authorization": f"Bearer {key}"}
        forms = [("file", ("1.jpg", jpeg)), ("file", ("2.jpg", jpeg))]
        response = httpx.post(f"{url}/predict/batch", files=forms, headers=headers)
        assert [part.split(";")[0] for part in response.headers["Server-Timing"].split(", ")] == [
            *("read", "decode", "queue", "device", "total"),
        ]
        line = until(log, "request")
        assert line["key"] == "mobile"
        assert all(line[f"{stage}_ms"] >= 0 for stage in ("read", "decode", "queue", "device"))
        httpx.post(f"{url}/predict", files={"file": b"no image"}, headers=headers)
        assert until(log, "request")["error"] == "unsupported-media-type"
        httpx.post(f"{url}/predict", files={"file": jpeg})
        line = until(log, "request")
        assert (line["status"], line["error"]) == (401, "unauthorized")
        httpx.get(f"{url}/nowhere")
        line = until(log, "request")
        assert (line["path"], line["route"], line["error"]) == ("/nowhere", "unmatched", "not-found")


def test_probes_and_scrapes_are_logged_on_request_only() -> None:
    """By default, the log has no lines of monitoring; with access_log_probes it has."""
    for option, expected in (("--no-access-log-probes", "/info"), ("--access-log-probes", "/healthz")):
        with started("--access-log", option) as (_, log, url):
            for path in ("/healthz", "/metrics", "/info"):
                httpx.get(f"{url}{path}")
            line = until(log, "request")
            while line["path"] == "/readyz":  # requested by `started`
                line = until(log, "request")
            assert line["path"] == expected


@contextmanager
def trace_collector() -> Iterator[tuple[str, list[Span]]]:
    """Run an OpenTelemetry collector; yield its URL and the list that it adds the received spans to."""
    spans: list[Span] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope_spans in resource_spans.scope_spans:
                    spans.extend(scope_spans.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", spans
        finally:
            server.shutdown()
            thread.join()


def test_spans_of_requests_and_stages_reach_a_collector(jpeg: bytes) -> None:
    """A request is a child span of the caller's with one child per stage; the exit waits for the export."""
    with (
        trace_collector() as (collector_url, received),
        started("--traces-url", collector_url) as (
            process,
            _,
            url,
        ),
    ):
        httpx.post(f"{url}/predict", files={"file": jpeg}, headers={"traceparent": TRACEPARENT})
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    spans = {span.name: span for span in received if span.trace_id.hex() == TRACE_ID}
    request = spans.pop("POST /predict")
    assert request.parent_span_id.hex() == CALLER_ID
    assert set(spans) == {"read", "decode", "queue", "device"}
    for span in spans.values():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano


@contextmanager
def unreachable_collector(kind: str) -> Iterator[str]:
    """Yield the URL of a collector that does not respond.

    `kind` is "closed" (no process listens), "silent" (connections are accepted) or "full" (not even those).
    """
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        if kind != "closed":
            server.listen(0 if kind == "full" else 100)
        for _ in range(2 if kind == "full" else 0):  # as many as the system keeps
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces"


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("kind", ["closed", "silent", "full"])
def test_unreachable_collector_does_not_delay_the_end(jpeg: bytes, kind: str, workers: str) -> None:
    """Without its collector, the service responds, and the last spans are lost within the drain timeout."""
    drain_timeout_s = 15
    with unreachable_collector(kind) as collector_url:
        variables = {"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        flags = ("--traces-url", collector_url, "--drain-timeout-s", str(drain_timeout_s))
        with started(*flags, "--workers", workers, program=None, limit=None, **variables) as (
            process,
            log,
            url,
        ):
            assert httpx.post(f"{url}/predict", files={"file": jpeg}).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(drain_timeout_s) == 0
            assert until(log, "last_spans_lost")


def test_api_keys_do_not_appear_in_logs_and_responses(jpeg: bytes) -> None:
    """Neither the log at level debug, nor the metrics, nor any response contains a key."""
    all_scopes, predict = "everything-0123456789", "images-0123456789"
    flags = ("--log-level", "debug", "--access-log")
    with started(*flags, RESNET_SERVICE_API_KEYS=f"{all_scopes},{predict} predict") as (process, log, url):
        headers = {"Authorization": f"Bearer {all_scopes}"}
        texts = [
            httpx.get(f"{url}{path}", headers=headers).text for path in ("/info", "/metrics", "/openapi.json")
        ]
        texts += [
            httpx.post(f"{url}/predict", files={"file": jpeg}, headers=request_headers).text
            for request_headers in (headers, {"X-API-Key": f"{predict}x"})
        ]
        process.send_signal(signal.SIGTERM)
        texts += [json.dumps(event) for event in log]
        assert process.wait(30) == 0
    assert any('"route": "/predict"' in text for text in texts)
    assert not any(key in text for key in (all_scopes, predict) for text in texts)


def test_rejected_connections_have_one_line_per_second() -> None:
    """The line has the client's address and the id of its response; TLS on the HTTP port is named."""
    with started() as (_, log, url):
        port = int(url.rpartition(":")[2])

        def send(data: bytes, address: str) -> bytes:
            with socket.create_connection(("127.0.0.1", port), source_address=(address, 0)) as connection:
                connection.sendall(data)
                return connection.makefile("rb").read()

        send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), "127.0.0.2")
        line = until(log, "connection_rejected")
        assert (line["reason"], line["client"], line["level"]) == ("malformed", "127.0.0.2", "warning")
        assert "TLS" in line["detail"]
        for _ in range(20):
            send(b"rubbish\r\n\r\n", "127.0.0.3")
        next_line_at = time.monotonic() + 1
        while time.monotonic() < next_line_at:
            httpx.get(f"{url}/healthz", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
        response = send(b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "127.0.0.4")
        lines = [next(log)]
        while lines[-1].get("client") != "127.0.0.4":
            lines.append(next(log))
        assert {line["event"] for line in lines} == {"connection_rejected"}  # uvicorn's lines have no limit
        assert sum(1 + line.get("omitted", 0) for line in lines) == 21
        assert len(lines) < 10
        assert response.startswith(b"HTTP/1.1 400 ")
        assert f"x-request-id: {lines[-1]['request_id']}\r\n".encode() in response
