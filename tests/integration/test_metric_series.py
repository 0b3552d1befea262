"""The number of series of /metrics, whatever clients send. Each takes memory and time of every scrape."""

import re
import socket
from collections.abc import Iterator
from random import Random
from typing import Any, Final

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from resnet_service.metric_labels import LABELS
from resnet_service.settings import Settings
from tests.support.server import Running, only_once, serving

pytestmark = only_once


KEY: Final = "known-key-0123456789"
METHODS: Final = re.findall(
    r"\S+",
    """
    GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK
    BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE
    MKCALENDAR LINK UNLINK
    """,
)
"""All methods that the server's parser knows, except CONNECT."""
OTHER_PATHS: Final = (
    "/",
    "/docs",
    "/page/app.js",
    "/page/samples/dog.jpg",
    "/page/{name}",
    "/page/samples/{name}",
    "/page/samples/{name}/{name}",
    "/openapi.json",
    "/static-offline-docs/swagger-ui.css",
    "/static-offline-docs/{name}",
    "/{name}",
    "/{name}/{name}",
    "/predict/{name}",
    "/v2/{name}",
    "/v2/models/{name}/versions/{version}/{name}",
    "/v2/models/cifar10/infer",
    "/v2/models/cifar10/versions/1/infer",
    "/v2/models/cifar10/versions/{version}",
)
"""Paths that /openapi.json does not list in this form."""
HIDDEN_ROUTES: Final = 4
"""Those of the paths above whose routes are their own: `/`, its files, sample images, and the API page."""
HIDDEN_STATUSES: Final = {"200", "206", "304", "404", "416"}
"""Of these routes, beside those of any route: files can be missing, the same as before, or read in parts."""
CONTENT_TYPES: Final = (
    "image/jpeg",
    "application/json",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "application/{name}",
    "{name}",
)
ANY_STATUS: Final = {"400", "422", "499", "500"}
"""Statuses that any route may have: of headers and paths, of a disconnected client, and of a bug."""
UNMATCHED_STATUSES: Final = {"200", "206", "304", "400", "404", "405", "416", "499", "500"}
"""Of files of the OpenAPI page, CORS, and what has no route."""
SERIES_PER_HISTOGRAM: Final = 17
REQUESTS: Final = "inference_request_seconds_"
IMAGES: Final = "inference_image_bytes_"
PREDICTIONS: Final = "inference_predictions_total"
MAX_CLASSES: Final = 10
FORMAT_NAMES: Final = ("jpeg", "png", "webp", "gif", "tiff", "avif", "heif", "bmp", "other")
REQUEST_COUNT: Final = re.compile(
    r'inference_request_seconds_count\{method="(.*)",route="(.*)",status="(.*)"\}'
)


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "two workers"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Yield a server whose routes need no key, and that has one anyway."""
    settings = Settings(
        model="cifar10",
        workers=request.param,
        api_keys=f"{KEY} predict",
        public_scopes="predict,metrics,bench",
        cors_origins="https://example.org",
        access_log=False,
    )
    with serving(settings, grpc=True) as running:
        yield running


class Stranger:
    """Sends requests with random parts in every place that a client can choose."""

    def __init__(
        self, server: Running, operations: dict[tuple[str, str], set[str]], jpeg: bytes, seed: int
    ) -> None:
        self._server = server
        self._jpeg = jpeg
        self._paths = [*dict.fromkeys(path for path, _ in operations), *OTHER_PATHS]
        self._random = Random(seed)

    def send_all(self) -> None:
        """Send each method to each path, and each content type, key and format to each path."""
        with httpx.Client(base_url=self._server.url, timeout=30) as client:
            for path in self._paths:
                for method in METHODS:
                    self._send(client, method, path, {})
                for method in ("GET", "POST"):
                    for headers in self._headers():
                        self._send(client, method, path, headers)
        for _ in range(10):
            self._send_malformed()

    def _headers(self) -> Iterator[dict[str, str]]:
        for content_type in CONTENT_TYPES:
            yield {"content-type": self._fill(content_type)}
        for key in (KEY, self._name()):
            yield {"authorization": f"Bearer {key}", "x-api-key": key}
        yield {"accept": self._fill("application/{name}, application/openmetrics-text; version={version}")}
        yield {"content-encoding": self._name()}
        yield {"accept": "text/html", "if-none-match": self._name(), "range": "bytes=1-2"}
        yield {"if-none-match": "*"}
        yield {"traceparent": f"00-{self._hex(32)}-{self._hex(16)}-01", "x-request-id": self._name()}
        yield {"user-agent": self._name(), "host": f"{self._name()}.example", self._name(): self._name()}
        for origin in ("https://example.org", f"https://{self._name()}.example"):
            yield {"origin": origin}

    def _send(self, client: httpx.Client, method: str, path: str, headers: dict[str, str]) -> None:
        is_benchmark = path == "/bench"  # an invalid one: others take seconds
        query = "batch_sizes=0" if is_benchmark else f"top_k={self._name()}&{self._name()}={self._name()}"
        url = f"{self._fill(path)}?{query}"
        if method == "GET":
            content = None
        elif headers.get("content-type") == "image/jpeg":
            content, url = self._jpeg, self._fill(path)
        else:
            content = self._random.randbytes(20)
        client.request(method, url, headers=headers, content=content)
        if method == "OPTIONS":
            for wanted in ("POST", self._name()):
                preflight = {"origin": "https://example.org", "access-control-request-method": wanted}
                client.request(method, url, headers=preflight)

    def _send_malformed(self) -> None:
        host, port = self._server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(f"{self._name().upper()} /{self._name()} HTTP/1.1\r\n\r\n".encode())
            while connection.recv(4096):
                pass

    def _fill(self, template: str) -> str:
        filled = re.sub(r"{\w*name}", lambda _: self._name(), template)
        return re.sub(r"{version}", lambda _: str(self._random.randrange(10**6)), filled)

    def _name(self) -> str:
        return f"n{self._hex(12)}"

    def _hex(self, digits: int) -> str:
        return f"{self._random.getrandbits(4 * digits):0{digits}x}"


def operations(server: Running) -> dict[tuple[str, str], set[str]]:
    """Return the statuses of each documented path and method."""
    paths: dict[str, dict[str, Any]] = server.client.get("/openapi.json").json()["paths"]
    return {
        (path, method.upper()): set(operation["responses"]) - {"default"}
        for path, methods in paths.items()
        for method, operation in methods.items()
    }


def all_series(server: Running) -> set[str]:
    """Return the names and labels of all samples of /metrics."""
    lines = server.client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_clients_cannot_create_series_without_limit(server: Running, jpeg: bytes) -> None:
    """The limit is known before, and what was sent once creates no series the next time."""
    documented = operations(server)
    others = {
        series for series in all_series(server) if not series.startswith((REQUESTS, IMAGES, PREDICTIONS))
    }
    combinations = (
        sum(len(statuses | ANY_STATUS) for statuses in documented.values())
        + HIDDEN_ROUTES * len(ANY_STATUS | HIDDEN_STATUSES)
        + len(("GET", "POST", "OPTIONS", "_OTHER")) * len(UNMATCHED_STATUSES)
    )
    limit = len(others) + MAX_CLASSES + (combinations + len(FORMAT_NAMES)) * SERIES_PER_HISTOGRAM

    Stranger(server, documented, jpeg, seed=1).send_all()
    first = all_series(server)
    Stranger(server, documented, jpeg, seed=2).send_all()
    second = all_series(server)

    assert second == first
    assert len(second) <= limit
    assert {series for series in second if not series.startswith((REQUESTS, IMAGES, PREDICTIONS))} == others
    for series in second:
        if match := REQUEST_COUNT.fullmatch(series):
            method, route, status = match.groups()
            if route == "unmatched":
                assert status in UNMATCHED_STATUSES
            else:
                assert status in documented.get((route, method), HIDDEN_STATUSES) | ANY_STATUS, series


def test_labels_are_documented(server: Running) -> None:
    """Each label of the service's metrics is in the table, which names its values."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(service_pb2.ServerLiveRequest())
    labels = {
        label
        for series in all_series(server)
        if series.startswith("inference_")
        for label in re.findall(r'(\w+)="', series)
    }
    assert labels == set(LABELS) | {"le"}


def test_grpc_clients_cannot_create_series(server: Running) -> None:
    """Unknown methods and services of gRPC have no series; neither have names in messages."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        for path in ("/inference.GRPCInferenceService/Strange", "/strange.Service/ModelInfer"):
            call: Any = channel.unary_unary(path)
            with pytest.raises(grpc.RpcError):
                call(b"")
        with pytest.raises(grpc.RpcError):
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelReady(
                service_pb2.ModelReadyRequest(name="Strange")
            )
    assert "trange" not in "".join(all_series(server))
