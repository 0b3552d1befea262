"""GET /: the page for browsers, its files and their headers, the index for other clients, and /labels."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import pytest

from resnet_service import __version__
from resnet_service.server.listener import bind_sockets
from resnet_service.server.run import management_server
from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS, REPOSITORY
from tests.support.http import assert_problem
from tests.support.server import Running, only_once, serving

pytestmark = only_once

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
ASSETS = REPOSITORY / "service/resnet_service/server/page/assets"
MAX_LINES = 300


class _Parser(HTMLParser):
    """Collects what a page refers to, and what its content security policy would reject."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references: set[str] = set()
        self.inline: list[str] = []
        self._tag = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.references |= {value or "" for name, value in attrs if name in ("src", "href")}
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self._tag in ("script", "style") and data.strip():
            self.inline.append(data)


def get_page(client: httpx.Client, path: str = "/", **headers: str) -> httpx.Response:
    return client.get(path, headers={"accept": BROWSER, **headers})


@pytest.fixture(scope="module")
def prefixed_server() -> Iterator[Running]:
    """Yield a server behind the prefix /resnet."""
    with serving(Settings(model="cifar10", root_path="/resnet")) as running:
        yield running


# Content negotiation


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "application/json, Text/HTML;q=0.5"])
def test_browsers_get_the_page(server: Running, accept: str) -> None:
    response = server.client.get("/", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["vary"] == "Accept"
    assert "<title>resnet-service</title>" in response.text


@pytest.mark.parametrize("accept", ["*/*", "application/json", "", "text/htmlx, text/*"])
def test_other_clients_get_links_as_json(server: Running, accept: str) -> None:
    """All links but that of /explain are paths of the server that respond with 200."""
    response = server.client.get("/", headers={"accept": accept})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["vary"] == "Accept"
    body = response.json()
    assert (body["name"], body["version"]) == ("resnet-service", __version__)
    assert set(body["links"]) == {"docs", "openapi", "health", "ready", "info", "metrics", "explain"}
    assert body["links"].pop("explain") == "/explain"  # for POST
    for path in body["links"].values():
        assert server.client.get(path).status_code == 200, path


def test_only_get_and_head_are_allowed(server: Running) -> None:
    for path in ("/", "/page/app.js", "/page/samples/dog.jpg"):
        assert server.client.post(path).status_code == 405, path


# Files and headers


def test_page_refers_to_files_of_this_service_only(server: Running) -> None:
    """All URLs are relative, for any prefix, and nothing is inline, for the content security policy."""
    parser = _Parser(get_page(server.client).text)
    assert parser.inline == []
    assert {"page/app.js", "page/style.css", "page/icon.svg", "page/samples/dog.jpg"} <= parser.references
    for reference in parser.references:
        assert re.match(r"[a-z]", reference), reference
        assert ":" not in reference
        assert server.client.get(f"/{reference}").status_code == 200, reference


@pytest.mark.parametrize("name", sorted(path.name for path in ASSETS.iterdir()))
def test_files_have_their_types_and_load_no_others(server: Running, name: str) -> None:
    """Modules import files beside them; neither these nor the style sheet refer to another address."""
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    response = server.client.get(f"/page/{name}")
    assert response.status_code == 200
    assert response.headers["content-type"] == types[name.rpartition(".")[2]]
    assert response.text == (ASSETS / name).read_text(encoding="utf-8")
    for imported in re.findall(r'from "(.*?)"', response.text):
        assert server.client.get(f"/page/{imported.removeprefix('./')}").status_code == 200, imported
    addresses = set(re.findall(r"https?://[^\s\"]*", response.text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address that a browser asks
    assert "url(" not in response.text
    assert len(response.text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("name", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("])
def test_scripts_create_no_html_from_text(name: str) -> None:
    """File names, labels and messages are set as text; the policy `require-trusted-types-for` enforces it."""
    assert [path.name for path in ASSETS.glob("*.js") if name in path.read_text(encoding="utf-8")] == []


def test_sample_images_are_the_photographs_of_the_package(server: Running) -> None:
    """Each has a button, and README.md has their sources and licenses."""
    page = get_page(server.client).text
    photographs = sorted(PHOTOGRAPHS.glob("*.jpg"))
    assert sorted(re.findall(r'data-name="(.*?)"', page)) == [path.name for path in photographs]
    for path in photographs:
        assert server.client.get(f"/page/samples/{path.name}").content == path.read_bytes()
    assert "CC0" in server.client.get("/page/samples/README.md").text


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/icon.svg", "/page/samples/dog.jpg"])
def test_page_has_a_strict_content_security_policy(server: Running, path: str) -> None:
    """Only files of this service are loaded, none of them inline, and no HTML is made from text."""
    headers = get_page(server.client, path).headers
    policies = headers["content-security-policy"].split(", ")  # all apply
    [policy] = [policy for policy in policies if "default-src" in policy]
    directives = dict(directive.split(" ", 1) for directive in policy.split("; "))
    assert directives == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"


def test_api_page_keeps_a_policy_of_its_own(server: Running) -> None:
    """Swagger UI has inline scripts; other responses have a policy that restricts no sources."""
    assert "'unsafe-inline'" in server.client.get("/docs").headers["content-security-policy"]
    assert "-src" not in server.client.get("/info").headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/samples/dog.jpg"])
def test_unchanged_files_are_304(server: Running, path: str) -> None:
    """Browsers keep the files, ask whether they have changed, and get no body if they have not."""
    response = get_page(server.client, path)
    assert response.headers["cache-control"] == "no-cache"
    etag = response.headers["etag"]
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        unchanged = get_page(server.client, path, **{"if-none-match": condition})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        for name in ("cache-control", "etag", "vary"):
            assert unchanged.headers.get(name) == response.headers.get(name)
    assert get_page(server.client, path, **{"if-none-match": '"other"'}).status_code == 200


def test_long_list_of_etags_is_answered(server: Running) -> None:
    """A regular expression for the separators took seconds of the event loop for so many spaces."""
    headers = {"if-none-match": f'"a"{" " * 60_000}"b"'}
    assert get_page(server.client, "/page/app.js", **headers).status_code == 200


def test_head_has_the_headers_of_the_page(server: Running) -> None:
    head = server.client.head("/", headers={"accept": BROWSER})
    assert head.status_code == 200
    assert head.content == b""
    get = get_page(server.client)
    for name in ("content-type", "content-length", "etag", "content-security-policy"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/",
        "/page/index.html",
        "/page/..%2findex.html",
        "/page/..%2f..%2frun.py",
        "/page/%2e%2e%2findex.html",
        "/page/%2fetc%2fpasswd",
        "/page/samples",
        "/page/samples/..%2f__init__.py",
        "/page/app.js%00",
        f"/page/{'x' * 300}",
    ],
)
def test_paths_outside_of_the_files_are_404(server: Running, path: str) -> None:
    assert get_page(server.client, path).status_code == 404


# Settings and ports


def test_page_can_be_switched_off() -> None:
    """Without `web_page`, browsers get the links too, and there are no files; API and API page stay."""
    with serving(Settings(model="cifar10", web_page=False)) as running:
        assert get_page(running.client).json()["name"] == "resnet-service"
        for path in ("/page/app.js", "/page/samples/dog.jpg"):
            assert running.client.get(path).status_code == 404
        assert running.client.get("/docs").status_code == 200


def test_links_leave_out_the_api_page_if_it_is_switched_off() -> None:
    """The page itself stays; it has the link only if the API page exists."""
    with serving(Settings(model="cifar10", api_docs=False)) as running:
        assert {"docs", "openapi"}.isdisjoint(running.client.get("/").json()["links"])
        assert get_page(running.client).headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("prefix", ["/resnet", ""], ids=["kept by the proxy", "removed by the proxy"])
def test_page_works_behind_a_prefix(prefixed_server: Running, prefix: str) -> None:
    """The links have the prefix, and the files are found with it and without it."""
    client = prefixed_server.client
    for reference in _Parser(get_page(client, f"{prefix}/").text).references:
        assert client.get(f"{prefix}/{reference}").status_code == 200, reference
    assert client.get(f"{prefix}/").json()["links"]["metrics"] == "/resnet/metrics"


def test_prefix_without_a_slash_redirects_browsers(prefixed_server: Running) -> None:
    """Relative URLs of the page would be relative to the parent of the prefix."""
    response = get_page(prefixed_server.client, "/resnet")
    assert response.status_code == 307
    assert response.headers["location"] == "/resnet/"
    assert prefixed_server.client.get("/resnet").json()["name"] == "resnet-service"


def test_management_port_has_no_page(server: Running) -> None:
    sockets = bind_sockets("127.0.0.1", 0)
    management = management_server(server.service, sockets)
    management.start()
    try:
        host, port = sockets[0].getsockname()
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=30) as client:
            for path in ("/", "/page/app.js", "/labels"):
                assert get_page(client, path).status_code == 404
    finally:
        management.stop()


# Labels


def test_labels_are_in_the_order_of_the_classes(server: Running, photo: bytes) -> None:
    body = server.client.get("/labels").json()
    assert (body["model"], body["version"]) == ("cifar10", "1")
    labels = body["labels"]
    assert len(labels) == server.client.get("/info").json()["labels"] == 10
    response = server.client.post("/predict?top_k=10", content=photo, headers={"content-type": "image/jpeg"})
    for prediction in response.json()["predictions"]:
        assert labels[prediction["class_id"]] == prediction["label"]


def test_labels_of_an_unknown_model_are_404(server: Running) -> None:
    assert_problem(server.client.get("/labels?model=other"), 404, "model-not-found")
    assert_problem(server.client.get("/labels?version=9"), 404, "model-not-found")


def test_labels_are_those_of_the_model_and_version_in_the_query(models_server: Running) -> None:
    """Without a version, they are those of the version that answers."""
    get = models_server.client.get
    assert get("/labels?model=pets").json()["labels"][0] == "pets-1-0"
    assert get("/labels?model=fruits&version=1").json()["labels"][0] == "fruits-1-0"
    assert get("/labels").json() == get("/labels?model=fruits&version=2").json()
