"""Who may do what: API keys and their parts, rates, and what answers and logs give away."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from resnet_service.client import APIError, Client
from resnet_service.errors import InvalidAPIKeysError
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings
from tests.support.file_server import FileServer
from tests.support.processes import rejected, started
from tests.support.server import Running, serving

EVERYTHING, IMAGES = "everything-0123456789", "images-0123456789"
SCRAPER, SLOW = "scraper-0123456789", "slowly-0123456789"
FILE = f"""
# for people
{IMAGES} predict   # nothing else
{SCRAPER} metrics
{SLOW} predict 0.01/s
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with keys from a file and from a setting."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(FILE, encoding="ascii")
    settings = Settings(
        model="bundled", api_keys=f"{EVERYTHING}, {EVERYTHING}-admin admin", api_keys_file=file
    )
    with serving(settings) as running:
        yield running


def status(server: Running, method: str, path: str, key: str | None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.request(method, f"{server.url}{path}", headers=headers, timeout=60).status_code


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_key(guarded: Running, path: str) -> None:
    """Whoever watches over the process need not be told a secret."""
    assert status(guarded, "GET", path, None) == 200


ELSE = [
    "/",
    "/docs",
    "/openapi.json",
    "/info",
    "/metrics",
    "/bench",
    "/v2",
    "/v2/models/bundled",
    "/nowhere",
    "//metrics",
]


@pytest.mark.parametrize("path", ELSE)
def test_everything_else_needs_a_key(guarded: Running, path: str) -> None:
    """Without a key, or with a wrong one, the answer is 401 and says how to send one."""
    for key in (None, "wrong-0123456789", "", f"{EVERYTHING}x", EVERYTHING[:-1]):
        headers = {} if key is None else {"X-API-Key": key}
        answer = httpx.get(f"{guarded.url}{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert key is None or not key or key not in answer.text


def test_every_documented_path_needs_a_key(guarded: Running) -> None:
    """No operation but the probes is left open, those to come included."""
    document = guarded.client.get("/openapi.json", headers={"X-API-Key": EVERYTHING}).json()
    probes = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
    for path, operations in document["paths"].items():
        for method in operations:
            assert status(guarded, method, path, None) == (200 if path in probes else 401), path


@pytest.mark.parametrize(
    ("key", "method", "path", "expected"),
    [
        (EVERYTHING, "GET", "/metrics", 200),
        (EVERYTHING, "GET", "/docs", 200),
        (EVERYTHING, "GET", "/bench?iterations=1&batch_sizes=1", 200),
        (EVERYTHING, "POST", "/reload", 403),
        (IMAGES, "GET", "/info", 200),
        (IMAGES, "GET", "/metrics", 403),
        (IMAGES, "GET", "/bench", 403),
        (IMAGES, "GET", "/docs", 403),
        (SCRAPER, "GET", "/metrics", 200),
        (SCRAPER, "GET", "/info", 403),
        (f"{EVERYTHING}-admin", "POST", "/reload", 200),
        (f"{EVERYTHING}-admin", "GET", "/metrics", 403),
    ],
)
def test_a_key_opens_its_parts(guarded: Running, key: str, method: str, path: str, expected: int) -> None:
    """A key that says its parts opens these, one that does not all but /reload."""
    assert status(guarded, method, path, key) == expected


def test_both_headers_are_understood(guarded: Running, jpeg: bytes) -> None:
    """Authorization: Bearer, in any case, and X-API-Key; the Python client sends its key."""
    for headers in ({"X-API-Key": IMAGES}, {"Authorization": f"bearer {IMAGES}"}):
        answer = httpx.post(f"{guarded.url}/predict", files={"file": jpeg}, headers=headers)
        assert answer.status_code == 200
    with Client(guarded.url, api_key=IMAGES) as client:
        assert client.predict(jpeg).predictions
    with Client(guarded.url) as client, pytest.raises(APIError, match="Authorization: Bearer"):
        client.predict(jpeg)


def test_a_key_has_its_rate(guarded: Running) -> None:
    """Whoever comes too fast gets 429 with the time until the next is welcome; others do not notice."""
    answers = [httpx.get(f"{guarded.url}/info", headers={"X-API-Key": SLOW}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert 50 < int(answers[1].headers["retry-after"]) <= 100
    assert answers[1].json()["type"] == "urn:resnet-service:problem:too-many-requests"
    assert status(guarded, "GET", "/info", IMAGES) == 200


def test_parts_can_be_public() -> None:
    """What is made public needs no key, and the rest still does."""
    with serving(Settings(model="bundled", api_keys=IMAGES, public_scopes="docs, metrics")) as server:
        statuses = {
            path: status(server, "GET", path, None) for path in ("/docs", "/metrics", "/info", "/bench")
        }
    assert statuses == {"/docs": 200, "/metrics": 200, "/info": 401, "/bench": 401}


def test_without_keys_all_but_reload_is_open(server: Running) -> None:
    """A service that was given no key asks for none, and lets nobody reload it."""
    assert status(server, "GET", "/metrics", None) == 200
    answer = httpx.post(f"{server.url}/reload")
    assert answer.status_code == 403
    assert "API key" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("short", "API key 1 has fewer than 16"),
        (f"{IMAGES},{IMAGES} everything", "API key 2: after the key"),
        (f"{IMAGES} 0/s", "after the key"),
        (f"{IMAGES} 1/s 2/s", "after the key"),
        ("schlüssel-0123456789", "visible ASCII"),
        (f"{IMAGES} predict,{IMAGES} metrics", "given twice"),
        ("# only a comment", "there is no API key"),
    ],
)
def test_keys_that_are_none_stop_the_start(keys: str, words: str) -> None:
    """The message names the entry, never the key."""
    with pytest.raises(InvalidAPIKeysError, match=words) as raised:
        build_app_state(Settings(model="bundled", api_keys=SecretStr(keys)))
    assert IMAGES not in str(raised.value)


def test_a_key_file_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    """A service that should ask for keys and cannot is not started without them."""
    assert "No such file" in rejected(
        "--model", "bundled", "--api-keys-file", str(tmp_path / "none"), status=3
    )


def test_a_part_that_is_not_there_stops_the_start() -> None:
    """A part misspelt is not a part left closed, nor one left open, without a word."""
    with pytest.raises(InvalidAPIKeysError, match="no part 'all'"):
        build_app_state(Settings(model="bundled", public_scopes="all"))


def test_keys_cannot_be_given_on_the_command_line() -> None:
    """There, every user of the machine could read them."""
    assert "No such option" in rejected("--api-keys", IMAGES, status=2)


def test_secrets_stay_out_of_logs_and_answers(jpeg: bytes) -> None:
    """Neither the log at its most talkative, nor metrics, nor any answer has a key in it."""
    with started(
        "--log-level", "debug", "--access-log", RESNET_SERVICE_API_KEYS=f"{EVERYTHING},{IMAGES} predict"
    ) as (
        process,
        log,
        url,
    ):
        headers = {"Authorization": f"Bearer {EVERYTHING}"}
        texts = [
            httpx.get(f"{url}{path}", headers=headers).text for path in ("/info", "/metrics", "/openapi.json")
        ]
        texts.append(httpx.post(f"{url}/predict", files={"file": jpeg}, headers=headers).text)
        texts.append(
            httpx.post(f"{url}/predict", files={"file": jpeg}, headers={"X-API-Key": f"{IMAGES}x"}).text
        )
        process.send_signal(15)
        texts += [json.dumps(event) for event in log]
        assert process.wait(30) == 0
    assert any('"route": "/predict"' in text for text in texts)
    assert not any(key in text for key in (EVERYTHING, IMAGES) for text in texts)


def test_nothing_that_a_client_names_is_opened(server: Running, file_server: FileServer, jpeg: bytes) -> None:
    """Paths and URLs in file names, fields, bodies and headers are words: nothing is read, nobody called."""
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
    assert post("/v2/models/bundled/infer", json={"inputs": [tensor]}).status_code in (415, 422)
    for header in ("X-Forwarded-For", "Forwarded", "Referer", "X-Original-URL"):
        assert server.client.get("/info", headers={header: target}).status_code == 200
    assert file_server.requests == []


def test_answers_have_the_headers_that_browsers_obey(server: Running) -> None:
    """No guessing of types, no frames, no other site's scripts, and no reading by other sites."""
    for path in ("/info", "/nowhere", "/docs"):
        headers = server.client.get(path, headers={"Origin": "https://example.org"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_other_sites_may_be_let_in() -> None:
    """The pages of the sites named, and of no others, may read answers."""
    with serving(Settings(model="bundled", cors_origins="https://example.org")) as server:
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        asked = server.client.options("/predict", headers={"Origin": "https://example.org", **preflight})
        own, other = (
            server.client.get("/info", headers={"Origin": f"https://example.{end}"}).headers
            for end in ("org", "com")
        )
    assert asked.status_code == 200
    assert own["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in other


def test_an_error_shows_nothing_of_the_inside(server: Running, jpeg: bytes) -> None:
    """What went wrong inside is in the log, not in the answer."""
    server.runtime.error = RuntimeError("secret of the inside")
    answer = server.client.post("/predict", files={"file": jpeg})
    server.runtime.error = None
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    """Weights that hold code are rejected, and the code is not run."""
    weights, proof = tmp_path / "weights.pth", tmp_path / "proof"
    program = (
        "import os, sys, torch\n"
        "class Evil:\n"
        "    def __reduce__(self): return os.mkdir, (sys.argv[2],)\n"
        "torch.save({'fc.weight': Evil()}, sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", program, str(weights), str(proof)], check=True)
    assert "weights" in rejected("--model", "resnet18", "--weights", str(weights), status=3)
    assert not proof.exists()


def test_a_traceback_on_a_terminal_has_no_variables() -> None:
    """What a person reads of an error has its lines, and not the images and keys that they were about."""
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
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert "RuntimeError: broken" in said
    assert "k" + 20 * "e" + "y" not in said
