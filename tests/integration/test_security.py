"""API keys with scopes and rates, CORS, response headers, and what must never be read, run or shown."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from click.testing import CliRunner
from pydantic import SecretStr

from resnet_service.cli import main
from resnet_service.client import APIError, Client
from resnet_service.errors import InvalidAPIKeysError, ModelLoadError
from resnet_service.models import ModelSource, load_model
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings
from tests.support.file_server import FileServer
from tests.support.server import Running, serving

ALL_SCOPES, ADMIN = "everything-0123456789", "everything-0123456789-admin"
PREDICT, METRICS, SLOW = "images-0123456789", "scraper-0123456789", "slowly-0123456789"
KEY_FILE = f"""
# a comment
{PREDICT} predict   # another comment
{METRICS} metrics
{SLOW} predict 0.01/s
"""
PROBES = ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"]


@pytest.fixture(scope="module")
def protected_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with API keys from a file and from a setting."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEY_FILE, encoding="ascii")
    settings = Settings(model="cifar10", api_keys=f"{ALL_SCOPES}, {ADMIN} admin", api_keys_file=file)
    with serving(settings) as running:
        yield running


@pytest.fixture(scope="module")
def public_server() -> Iterator[Running]:
    """Yield a server with public scopes that permits one other site."""
    settings = Settings(
        model="cifar10",
        api_keys=PREDICT,
        public_scopes="metrics",
        cors_origins="HTTPS://Example.org:443/",  # browsers send https://example.org
    )
    with serving(settings) as running:
        yield running


def status(server: Running, method: str, path: str, key: str | None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return server.client.request(method, path, headers=headers, timeout=60).status_code


@pytest.mark.parametrize("path", PROBES)
def test_probes_need_no_api_key(protected_server: Running, path: str) -> None:
    """The health probes are public, so that monitoring needs no secret."""
    assert status(protected_server, "GET", path, None) == 200


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/info",
            "/labels",
            "/metrics",
            "/bench",
            "/v2",
            "/v2/models/cifar10",
            "/v2/models/other",
            "/v2/models/x/ready",
        ),
    ],
)
def test_other_routes_are_401_without_a_valid_key(protected_server: Running, path: str) -> None:
    """Without a key, or with an unknown one, the response says how to send a key, and shows none."""
    for key in (None, "wrong-0123456789", "", f"{ALL_SCOPES}x", ALL_SCOPES[:-1]):
        headers = {} if key is None else {"X-API-Key": key}
        response = httpx.get(f"{protected_server.url}{path}", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert key is None or not key or key not in response.text


def test_every_documented_operation_requires_a_key(protected_server: Running) -> None:
    """All operations of the OpenAPI document except the probes are protected, future ones included."""
    document = protected_server.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert status(protected_server, method, path, None) == (200 if path in PROBES else 401), path
            assert ("security" in operation) is (path not in PROBES), path


@pytest.mark.parametrize(
    "path", ["/", "/page/app.js", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"]
)
def test_pages_need_no_api_key(protected_server: Running, path: str) -> None:
    """A browser cannot send a key with the first request; the pages ask for the key."""
    response = protected_server.client.get(path, follow_redirects=True)
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/nowhere", "//metrics"])
def test_unknown_paths_are_404_with_and_without_a_key(protected_server: Running, path: str) -> None:
    """A path without a route has nothing to protect, and other spellings of a path have no route."""
    for key in (None, ALL_SCOPES):
        headers = {} if key is None else {"X-API-Key": key}
        assert httpx.get(f"{protected_server.url}{path}", headers=headers).status_code == 404


def test_api_page_can_be_switched_off() -> None:
    """Without `api_docs`, neither the API page nor the schema exists."""
    with serving(Settings(model="cifar10", api_docs=False)) as running:
        for path in ("/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
            assert running.client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("key", "method", "path", "expected"),
    [
        (ALL_SCOPES, "GET", "/metrics", 200),
        (ALL_SCOPES, "GET", "/bench?iterations=1&batch_sizes=1", 200),
        (ALL_SCOPES, "POST", "/reload", 403),
        (PREDICT, "GET", "/info", 200),
        (PREDICT, "GET", "/metrics", 403),
        (PREDICT, "GET", "/bench", 403),
        (PREDICT, "POST", "/explain", 403),
        (ALL_SCOPES, "POST", "/explain", 415),  # without an image
        (METRICS, "GET", "/metrics", 200),
        (METRICS, "GET", "/info", 403),
        (ADMIN, "POST", "/reload", 200),
        (ADMIN, "GET", "/metrics", 403),
    ],
)
def test_key_permits_only_its_scopes(
    protected_server: Running, key: str, method: str, path: str, expected: int
) -> None:
    """A key with scopes permits only these; a key without scopes permits all except admin."""
    assert status(protected_server, method, path, key) == expected


def test_key_is_accepted_in_both_headers(protected_server: Running, jpeg: bytes) -> None:
    """Authorization: Bearer, in any case, and X-API-Key work; the Python client sends its key."""
    for headers in ({"X-API-Key": PREDICT}, {"Authorization": f"bearer {PREDICT}"}):
        response = httpx.post(f"{protected_server.url}/predict", files={"file": jpeg}, headers=headers)
        assert response.status_code == 200
    with Client(protected_server.url, api_key=PREDICT) as client:
        assert client.predict(jpeg).predictions
    with Client(protected_server.url) as client, pytest.raises(APIError, match="Authorization: Bearer"):
        client.predict(jpeg)


def test_requests_over_the_rate_of_a_key_are_429(protected_server: Running) -> None:
    """Retry-After has the time until the next request is permitted; other keys are not affected."""
    client = protected_server.client
    responses = [client.get("/info", headers={"X-API-Key": SLOW}) for _ in range(3)]
    assert [response.status_code for response in responses] == [200, 429, 429]
    assert 50 < int(responses[1].headers["retry-after"]) <= 100
    assert responses[1].json()["type"] == "urn:resnet-service:problem:too-many-requests"
    assert status(protected_server, "GET", "/info", PREDICT) == 200


def test_public_scopes_need_no_key(public_server: Running) -> None:
    """Only the paths of public scopes can be used without a key."""
    paths = ("/metrics", "/info", "/bench")
    statuses = {path: status(public_server, "GET", path, None) for path in paths}
    assert statuses == {"/metrics": 200, "/info": 401, "/bench": 401}


def test_without_keys_everything_except_reload_is_public(server: Running) -> None:
    """A service without API keys requires none, and cannot be reloaded over HTTP."""
    assert status(server, "GET", "/metrics", None) == 200
    response = server.client.post("/reload")
    assert response.status_code == 403
    assert "API key" in response.json()["detail"]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("short", "API key 1 has fewer than 16"),
        (f"{PREDICT},{PREDICT} everything", "API key 2: expected KEY"),
        (f"{PREDICT} 0/s", "positive rate"),
        (f"{PREDICT} 1/s 2/s", "at most one"),
        (f"{PREDICT} name=a name=b", "at most one name"),
        (f"{PREDICT} priority=interactive", "expected KEY"),
        ("schlüssel-0123456789", "visible ASCII"),
        (f"{PREDICT} predict,{PREDICT} metrics", "duplicate API key"),
        ("# only a comment", "no API keys found"),
    ],
)
def test_invalid_api_keys_stop_the_start(keys: str, reason: str) -> None:
    """The message has the number of the entry, but not the key."""
    with pytest.raises(InvalidAPIKeysError, match=reason) as raised:
        build_app_state(Settings(model="cifar10", api_keys=SecretStr(keys)))
    assert PREDICT not in str(raised.value)


def test_missing_key_file_stops_the_start(tmp_path: Path) -> None:
    """A service whose API keys cannot be read does not start without them."""
    with pytest.raises(InvalidAPIKeysError, match="No such file"):
        build_app_state(Settings(model="cifar10", api_keys_file=tmp_path / "missing"))


def test_unknown_public_scope_stops_the_start() -> None:
    """A misspelled scope is reported, instead of being ignored."""
    with pytest.raises(InvalidAPIKeysError, match="'all' is not one of predict, explain, metrics, bench"):
        build_app_state(Settings(model="cifar10", public_scopes="all"))


def test_api_keys_are_not_a_command_line_option() -> None:
    """All users of a machine can read command lines, so keys cannot be set there."""
    result = CliRunner().invoke(main, ["serve", "--api-keys", PREDICT])
    assert result.exit_code == 2
    assert "No such option" in result.output


def test_names_sent_by_clients_are_never_opened(
    server: Running, file_server: FileServer, jpeg: bytes
) -> None:
    """Paths and URLs in file names, fields, bodies and headers are not opened, and get no request."""
    target = f"{file_server.url}/secret.jpg"
    (file_server.folder / "secret.jpg").write_bytes(jpeg)
    post = server.client.post
    assert post("/predict", files={"file": ("/etc/passwd", jpeg)}).status_code == 200
    assert post("/predict", files={"file": (target, jpeg)}).status_code == 200
    assert post("/predict", data={"file": target}).status_code == 415
    assert post("/predict", content=target, headers={"Content-Type": "image/jpeg"}).status_code == 415
    assert post("/predict", json={"url": target}).status_code == 415
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>'.encode()
    assert post("/predict", files={"file": svg}).status_code == 415
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n"
    assert post("/predict", files={"file": eps}).status_code == 415
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [target]}
    assert post("/v2/models/cifar10/infer", json={"inputs": [tensor]}).status_code in (415, 422)
    for header in ("X-Forwarded-For", "Forwarded", "Referer", "X-Original-URL"):
        assert server.client.get("/info", headers={header: target}).status_code == 200
    assert file_server.requests == []


def test_responses_have_security_headers(server: Running) -> None:
    """Browsers must not guess types, show the service in frames, or let other sites read responses."""
    for path in ("/info", "/nowhere", "/docs"):
        headers = server.client.get(path, headers={"Origin": "https://example.org"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_cors_permits_only_the_configured_origins(public_server: Running) -> None:
    """Pages of the configured sites may read responses, and pages of other sites may not."""
    client, origin = public_server.client, {"Origin": "https://example.org"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    assert client.options("/predict", headers=origin | preflight).status_code == 200
    headers = client.get("/metrics", headers=origin).headers
    assert headers["access-control-allow-origin"] == "https://example.org"
    headers = client.get("/metrics", headers={"Origin": "https://example.com"}).headers
    assert "access-control-allow-origin" not in headers


def test_internal_error_shows_no_internals(server: Running, jpeg: bytes) -> None:
    """The message of an unexpected exception is logged, but not sent to the client."""
    server.runtime.error = RuntimeError("secret detail")
    try:
        response = server.client.post("/predict", files={"file": jpeg})
    finally:
        server.runtime.error = None
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text


class _MakeFolder:
    """An object whose unpickling creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_pickled_code_in_weights_is_not_run(tmp_path: Path) -> None:
    """A weights file that contains code is rejected, and the code does not run."""
    weights, folder = tmp_path / "weights.pth", tmp_path / "created"
    torch.save({"fc.weight": _MakeFolder(folder)}, weights)
    with pytest.raises(ModelLoadError, match="weights"):
        load_model(ModelSource("resnet18", str(weights)))
    assert not folder.exists()


def test_traceback_on_a_terminal_shows_no_variables() -> None:
    """The console format shows the lines of a traceback, but not variables, which can be images or keys."""
    program = (
        "import logging\n"
        "from resnet_service import log_config\n"
        "log_config.configure_logging(style='console')\n"
        "def fail(key): raise RuntimeError('broken')\n"
        "try:\n"
        "    fail('k' + 20 * 'e' + 'y')\n"
        "except RuntimeError:\n"
        "    logging.getLogger('x').exception('it is')\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "RuntimeError: broken" in process.stderr
    assert "k" + 20 * "e" + "y" not in process.stderr
