"""The service behind nginx with TLS and a prefix, as a process and with two HTTP workers."""

import re
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import pytest

from tests.support import REPOSITORY
from tests.support.http import files
from tests.support.nginx import client, documented_configuration, run_nginx
from tests.support.processes import Log, started, until

SERVE = ("--root-path", "/resnet", "--trusted-proxies", "127.0.0.1", "--access-log")
CLIENT = "127.0.0.2"
"""The address of the clients in these tests; nginx connects to the service from 127.0.0.1."""

LOCATION = """
    location /{prefix}/ {{
        proxy_pass http://resnet{removed};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Prefix /{prefix};
        proxy_buffering {buffering};
        proxy_request_buffering {buffering};
    }}
"""
PREFIXES = ("resnet", "removed-on", "removed-off", "kept-on", "kept-off")
"""The documented location, and those of `LOCATION`: whether the prefix is kept, and whether nginx buffers."""


def configuration() -> str:
    """Return the documented configuration with one more location for each way to proxy."""
    documented = documented_configuration(REPOSITORY / "docs/serving.md")
    locations = [
        LOCATION.format(
            prefix=prefix, removed="/" if "removed" in prefix else "", buffering=prefix.rpartition("-")[2]
        )
        for prefix in PREFIXES[1:]
    ]
    end = documented.rindex("}")
    return documented[:end] + "".join(locations) + documented[end:]


@pytest.fixture(scope="module", params=["0", "2"], ids=["one process", "two workers"])
def proxied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, Log, str]]:
    """Yield a client of nginx, the log of the service behind it, and the service's own URL."""
    events: SimpleQueue[dict[str, Any]] = SimpleQueue()
    folder = tmp_path_factory.mktemp("nginx")
    with (
        started(*SERVE, "--workers", request.param) as (process, log, url),
        run_nginx(configuration(), url, folder) as proxy_url,
        client(proxy_url, folder, CLIENT) as connected,
    ):
        # All of the log is read: a full pipe would stop the service.
        reader = threading.Thread(target=lambda: deque(map(events.put, log)))
        reader.start()
        yield connected, iter(events.get, None), url
        process.kill()
        reader.join()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_page_is_served_behind_nginx(proxied: tuple[httpx.Client, Log, str], prefix: str) -> None:
    """Its relative URLs are below the prefix, also if a user leaves out the slash after it."""
    connected, _, _ = proxied
    page = connected.get(f"/{prefix}", headers={"Accept": "text/html"}, follow_redirects=True)
    assert page.url.path == f"/{prefix}/"
    references = re.findall(r'(?:src|href)="(.*?)"', page.text)
    assert "page/app.js" in references
    for reference in references:
        assert connected.get(page.url.join(reference)).status_code == 200, reference


@pytest.mark.parametrize("prefix", PREFIXES)
def test_images_are_classified_behind_nginx(
    proxied: tuple[httpx.Client, Log, str], photo: bytes, prefix: str
) -> None:
    """Forms, whole bodies, streams and large batches get 200, again and again on reused connections."""
    connected, _, _ = proxied
    raw = {"Content-Type": "image/jpeg"}
    for _ in range(10):
        assert connected.post(f"/{prefix}/predict", files=files(photo)).status_code == 200
        assert connected.post(f"/{prefix}/predict", content=photo, headers=raw).status_code == 200
        chunks = (photo[start : start + 10_000] for start in range(0, len(photo), 10_000))
        assert connected.post(f"/{prefix}/predict", content=chunks, headers=raw).status_code == 200
    response = connected.post(f"/{prefix}/predict/batch", files=files(*[photo] * 60))
    assert [len(result["predictions"]) for result in response.json()["results"]] == [5] * 60
    assert connected.post(f"/{prefix}/predict", content=b"text", headers=raw).status_code == 415
    assert connected.head(f"/{prefix}/healthz").status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_api_page_works_under_prefix(proxied: tuple[httpx.Client, Log, str], prefix: str) -> None:
    """The link to the page, its files and the URLs in its description have the prefix."""
    connected, _, _ = proxied
    location = connected.get(f"/{prefix}/").json()["links"]["docs"]
    assert location == f"/{prefix}/docs"
    page = connected.get(location).text
    urls = re.findall(r'(?:src|href)="([^"]+)"', page) + re.findall(r"url: '([^']+)'", page)
    assert len(urls) >= 3
    for url in urls:
        assert url.startswith(f"/{prefix}/")
        assert connected.get(url).status_code == 200
    assert connected.get(f"/{prefix}/openapi.json").json()["servers"] == [{"url": f"/{prefix}"}]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_slash_at_the_end_is_404_behind_nginx(
    proxied: tuple[httpx.Client, Log, str], photo: bytes, prefix: str
) -> None:
    """A redirect would lead to http:// or out of the prefix, and lose the body."""
    connected, _, _ = proxied
    for path in ("predict/", "docs/", "v2/", "healthz/", "static-offline-docs/"):
        assert connected.get(f"/{prefix}/{path}").status_code == 404
    assert connected.post(f"/{prefix}/predict/", files=files(photo)).status_code == 404


def test_access_log_has_address_of_client(proxied: tuple[httpx.Client, Log, str]) -> None:
    """The client is the peer of nginx, or of the service, whatever address the client itself sends."""
    connected, log, url = proxied
    with httpx.Client(transport=httpx.HTTPTransport(local_address=CLIENT)) as direct:
        for number, headers in enumerate(
            ({}, {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.1, 127.0.0.1"})
        ):
            for sender, address in ((connected, "/resnet/info"), (direct, f"{url}/info")):
                ids = {"X-Request-ID": f"{id(sender)}-{number}"}
                assert sender.get(address, headers={**headers, **ids}).status_code == 200
                line = next(event for event in log if event.get("request_id") == ids["X-Request-ID"])
                assert (line["client"], line["path"]) == (CLIENT, "/info")


def test_prefix_of_untrusted_peer_is_ignored(proxied: tuple[httpx.Client, Log, str]) -> None:
    """Only a trusted proxy can change the URLs of the API page, and only to a path."""
    connected, _, url = proxied
    with httpx.Client(transport=httpx.HTTPTransport(local_address=CLIENT)) as direct:
        for client_, page in ((direct, f"{url}/docs"), (connected, "/resnet/docs")):
            assert "/evil/" not in client_.get(page, headers={"X-Forwarded-Prefix": "/evil"}).text
    for prefix in ("//evil", "/a'b", "/<script>", "evil"):
        page = httpx.get(f"{url}/docs", headers={"X-Forwarded-Prefix": prefix}).text  # from 127.0.0.1
        assert "'/resnet/openapi.json'" in page


@pytest.mark.parametrize("workers", ["0", "2"])
def test_requests_behind_nginx_get_responses_during_drain(tmp_path: Path, photo: bytes, workers: str) -> None:
    """Requests that are in progress at SIGTERM get 200, and new ones 502 once the service has ended."""
    with (
        started(*SERVE, "--no-access-log", "--workers", workers) as (process, log, url),
        run_nginx(configuration(), url, tmp_path) as proxy_url,
        client(proxy_url, tmp_path) as connected,
        ThreadPoolExecutor(4) as pool,
    ):

        def post() -> int:
            return connected.post("/resnet/predict/batch", files=files(*[photo] * 64)).status_code

        requests = [pool.submit(post) for _ in range(4)]
        while "inference_upload_bytes 0.0" in httpx.get(f"{url}/metrics").text:
            assert not all(request.done() for request in requests)
        process.send_signal(signal.SIGTERM)
        assert [request.result() for request in requests] == [200] * 4
        until(log, "stopped")
        assert process.wait(30) == 0
        assert connected.get("/resnet/healthz").status_code == 502
