"""The page at / in a real browser, with a real service.

All tests end with an error if the page asks another address, violates its content security policy, or writes
an error to the console. `SCREENSHOTS=docs/images` keeps the image for the README (`page.png`).
"""

import csv
import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FilePayload, Locator, Page, Response, expect

from resnet_service.settings import Settings
from tests.support import PHOTOGRAPHS
from tests.support.browser import browsing, photographed
from tests.support.images import encode, make_image
from tests.support.repository import Repository
from tests.support.server import Running, serving

KEY, METRICS_KEY = "predictions-0123456789", "everything-0123456789"
MAX_CONCURRENCY = 4


@pytest.fixture
def page(server: Running) -> Iterator[Page]:
    """Yield the page of the shared service with cifar10, once it shows the model."""
    with browsing(server.url, clean_console=True) as page:
        visit(page, server.url)
        yield page


def visit(page: Page, url: str) -> None:
    page.goto(f"{url}/")
    expect(page.get_by_role("heading", name="Classes")).to_be_visible()


def file(name: str, content: bytes, mime_type: str = "image/jpeg") -> FilePayload:
    return {"name": name, "mimeType": mime_type, "buffer": content}


def choose(page: Page, *files: FilePayload | Path) -> None:
    payloads = [file(item.name, item.read_bytes()) if isinstance(item, Path) else item for item in files]
    page.get_by_label("Choose images").set_input_files(payloads)


def card(page: Page, name: str) -> Locator:
    """Return the card of the image with this file name."""
    return page.get_by_role("listitem").filter(has=page.get_by_role("heading", name=name))


def copied(page: Page, start: str) -> str:
    """Wait until the clipboard has a text that begins with `start`, and return it."""
    deadline = time.monotonic() + 30
    while not (text := str(page.evaluate("navigator.clipboard.readText()"))).startswith(start):
        assert time.monotonic() < deadline, text
    return text


def violations(page: Page) -> list[tuple[str, list[str]]]:
    """Return what axe-core finds in the page: rules of WCAG 2.2 A and AA, and its best practices."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]


# Images


def test_sample_image_is_classified_with_one_click() -> None:
    """The photograph is shown with five classes as bars and the time of each stage."""
    with (
        serving(Settings(model="efficientnet_lite0")) as service,
        browsing(service.url, 1280, 860, clean_console=True) as page,
    ):
        visit(page, service.url)
        for name in ("Coffee", "Dog"):
            page.get_by_role("button", name=name, exact=True).click()
            expect(card(page, f"{name.lower()}.jpg").locator(".bars li")).to_have_count(5)
        dog = card(page, "dog.jpg")
        expect(dog.locator(".bars li").first).to_have_text(re.compile(r"^Samoyed[67]\d\.\d %$"))
        expect(dog.locator(".waterfall dt")).to_have_text(
            ["network", "read", "decode", "queue", "device", "service", "total"]
        )
        for duration in dog.locator(".waterfall .duration").all_text_contents():
            assert re.fullmatch(r"\d[\d.]* m?s", duration)
        assert (
            dog.locator(".picture").evaluate("image => image.decode().then(() => image.naturalWidth)") == 480
        )
        expect(page.get_by_role("status").filter(has_text="dog.jpg")).to_have_text(
            re.compile(r"^dog\.jpg: Samoyed, [67]\d\.\d %$")
        )
        expect(page.locator("#rate")).to_have_text(re.compile(r"^[\d.]+$"))
        photographed(page, "page")


def test_explanation_is_shown_over_the_image(page: Page) -> None:
    """The button shows the places that speak for the best class, and hides them again."""
    pytest.importorskip("captum", reason="requires the extra explain")
    choose(page, PHOTOGRAPHS / "cat.jpg")
    cat = card(page, "cat.jpg")
    button = cat.get_by_role("button", name="Explain, cat.jpg")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    heat = cat.get_by_role("img", name=re.compile("^Places that speak for cat"))
    expect(heat).to_be_visible()
    assert heat.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    button.click()
    expect(heat).to_be_hidden()


def test_files_of_the_chooser_are_classified_or_have_the_words_of_the_service(page: Page) -> None:
    """A TIFF, which browsers cannot show, is classified too, with a placeholder for the image."""
    tiff = file("scan.tiff", encode(make_image(), "TIFF"), "image/tiff")
    choose(page, PHOTOGRAPHS / "cat.jpg", tiff, file("notes.jpg", b"This is not an image.", "text/plain"))
    expect(card(page, "cat.jpg").locator(".bars li").first).to_contain_text("cat")
    expect(card(page, "scan.tiff").locator(".bars li")).to_have_count(5)
    expect(card(page, "scan.tiff").get_by_text("TIFF", exact=True)).to_be_visible()
    notes = card(page, "notes.jpg")
    expect(notes).to_contain_text("Unsupported media type")
    expect(notes).to_contain_text("not an image in a supported format")
    expect(page.get_by_text("3 images, 1 failed")).to_be_visible()
    notes.get_by_role("button", name="Remove, notes.jpg").click()
    expect(page.locator(".card")).to_have_count(2)
    expect(page.get_by_text("2 images", exact=True)).to_be_visible()


def test_file_over_the_limit_of_the_service_is_not_sent(page: Page) -> None:
    """The connection would be closed within the upload, which looks like a lost one."""
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    choose(page, file("huge.jpg", bytes(20_000_001)))
    expect(card(page, "huge.jpg")).to_contain_text("the limit is 20 MB")
    assert "POST" not in sent


def test_pasted_image_is_classified(server: Running) -> None:
    """An image on the clipboard is pasted with the keyboard."""
    with browsing(server.url, clean_console=True) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        visit(page, server.url)
        page.evaluate(
            """async () => {
                const canvas = new OffscreenCanvas(64, 64);
                canvas.getContext("2d").fillRect(0, 0, 32, 32);
                const blob = await canvas.convertToBlob({ type: "image/png" });
                await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
            }"""
        )
        page.keyboard.press("Control+V")
        expect(card(page, "pasted-1.png").locator(".bars li")).to_have_count(5)


def test_dropped_image_is_classified(page: Page, jpeg: bytes) -> None:
    """The drop zone is marked while files are dragged over the page."""
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", { type: "image/jpeg" }));
            return transfer;
        }""",
        list(jpeg),
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("body")).to_have_class(re.compile("dragging"))
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("body")).not_to_have_class(re.compile("dragging"))
    expect(card(page, "dropped.jpg").locator(".bars li")).to_have_count(5)


def test_many_images_are_sent_a_few_at_a_time(server: Running, page: Page, jpeg: bytes) -> None:
    """Of 200 images, four requests run at the same time; the page keeps small previews only."""
    posts: list[str] = []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    photo = (PHOTOGRAPHS / "dog.jpg").read_bytes()
    with server.runtime.held():
        choose(page, *(file(f"{number:03}.jpg", jpeg if number else photo) for number in range(200)))
        expect(page.locator(".card[data-state=running]")).to_have_count(MAX_CONCURRENCY)
        expect(page.locator(".card[data-state=waiting]")).to_have_count(200 - MAX_CONCURRENCY)
        expect(page.get_by_text("0 of 200 images")).to_be_visible()
        assert len(posts) == MAX_CONCURRENCY
    expect(page.locator(".card[data-state=done]")).to_have_count(200, timeout=240_000)
    expect(page.get_by_text("200 images", exact=True)).to_be_visible()
    expect(page.locator("#announcement")).to_have_text("Classified 200 images")
    preview = page.locator(".card").first.locator(".picture")
    expect(preview).to_be_visible()
    assert preview.evaluate("image => image.decode().then(() => image.naturalWidth)") == 480  # of 774
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.get_by_role("heading", name="Results")).to_be_hidden()


def test_text_from_files_is_never_html(page: Page, jpeg: bytes) -> None:
    """A file name with HTML is shown as it is, in the cards and in the table."""
    name = "<img src=x onerror=alert(1)>.jpg"
    choose(page, file(name, jpeg))
    expect(card(page, name).locator(".bars li")).to_have_count(5)
    page.get_by_text("Table", exact=True).click()
    expect(page.get_by_role("rowheader", name=name)).to_be_visible()
    assert page.locator("#results img[src=x]").count() == 0


# What can be done with results


def test_table_is_saved_as_csv(page: Page, jpeg: bytes) -> None:
    """Text is quoted, a name like a formula is text for spreadsheets, and an error has its words."""
    names = ['=1+1,"x".jpg', "grün.jpg", "notes.jpg"]
    choose(page, *(file(name, jpeg) for name in names[:2]), file("notes.jpg", b"text"))
    expect(page.get_by_text("3 images, 1 failed")).to_be_visible()
    page.get_by_text("Table", exact=True).click()
    expect(page.get_by_role("row")).to_have_count(4)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "results.csv"
    content = download.value.path().read_bytes()
    assert content.startswith(b'\xef\xbb\xbf"file","bytes","state","label_1","probability_1",')
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert [row["file"] for row in rows] == ['\'=1+1,"x".jpg', "grün.jpg", "notes.jpg"]
    assert [row["state"] for row in rows] == ["done", "done", "failed"]
    for row in rows[:2]:
        probabilities = [float(row[f"probability_{rank}"]) for rank in range(1, 6)]
        assert probabilities == sorted(probabilities, reverse=True)
        assert (row["model"], row["version"], row["error"]) == ("cifar10", "1", "")
        assert 0 < float(row["total_ms"]) < float(row["browser_ms"])
        assert int(row["bytes"]) == len(jpeg)
    assert "not an image" in rows[2]["error"]
    assert rows[2]["label_1"] == ""


def test_json_and_curl_command_are_copied(server: Running, tmp_path: Path) -> None:
    """The command classifies the file in a shell, whatever its name is."""
    name = 'it\'s a "cat"; $HOME, 1.jpg'
    shutil.copy(PHOTOGRAPHS / "cat.jpg", tmp_path / name)
    with browsing(server.url, clean_console=True) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        visit(page, server.url)
        choose(page, tmp_path / name)
        cat = card(page, name)
        cat.get_by_role("button", name="Copy JSON").click()
        assert json.loads(copied(page, "{"))["model"] == "cifar10"
        cat.get_by_role("button", name="Copy curl").click()
        command = copied(page, "curl ")
    result = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert '"label":"cat"' in result.stdout


# Models


def test_model_and_version_can_be_chosen(tmp_path: Path, jpeg: bytes) -> None:
    """Results, facts, labels and the curl command are those of the version that is chosen."""
    Repository(tmp_path).restore()
    with (
        serving(Settings(model="auto", model_repository=tmp_path)) as service,
        browsing(service.url, clean_console=True) as page,
    ):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        visit(page, service.url)
        choice = page.get_by_label("Model and version")
        expect(choice.locator("option")).to_have_text(
            ["fruits, default version", "fruits, version 1", "fruits, version 2", "pets"]
        )
        choose(page, file("a.jpg", jpeg))
        best = card(page, "a.jpg").locator(".bars li").first
        expect(best).to_contain_text("fruits-2-")
        choice.select_option("fruits, version 1")
        expect(page.get_by_label("Labels", exact=True)).to_contain_text("fruits-1-0")
        page.get_by_role("button", name="Classify again").click()
        expect(best).to_contain_text("fruits-1-")
        choice.select_option("pets")
        expect(page.locator("#facts")).to_contain_text(re.compile("96 . 96 px"))
        page.get_by_role("button", name="Classify again").click()
        expect(best).to_contain_text("pets-1-")
        card(page, "a.jpg").get_by_role("button", name="Copy curl").click()
        command = copied(page, "curl ")
        assert command == f"curl -F file=@a.jpg '{service.url}/predict?model=pets'"


def test_labels_can_be_searched(page: Page) -> None:
    labels = page.get_by_label("Labels", exact=True).get_by_role("listitem")
    expect(labels).to_have_count(10)
    page.get_by_label("Search labels").fill("RD")
    expect(labels).to_have_text(["2bird"])
    expect(page.get_by_text("1 label of 10")).to_be_visible()


def test_page_shows_the_model_that_is_loaded_now(tmp_path: Path) -> None:
    """After a load of another version, the facts and the labels change without a reload of the page."""
    repository = Repository(tmp_path)
    repository.restore()
    shutil.rmtree(tmp_path / "fruits" / "2")
    admin = "administrator-0123456789"
    settings = Settings(
        model="auto", model_repository=tmp_path, api_keys=f"{admin} admin", public_scopes="predict,metrics"
    )
    with serving(settings) as service, browsing(service.url, clean_console=True) as page:
        visit(page, service.url)
        expect(page.get_by_label("Labels", exact=True)).to_contain_text("fruits-1-0")
        repository.restore()
        headers = {"X-API-Key": admin}
        response = service.client.post("/v2/repository/models/fruits/load", headers=headers, timeout=60)
        assert response.status_code == 200, response.text
        expect(page.get_by_label("Labels", exact=True)).to_contain_text("fruits-2-0")


# Live figures


def test_live_figures_are_asked_for_while_the_page_is_visible(server: Running) -> None:
    """Requests, latency and batch size of the last seconds are shown; a hidden page asks for nothing."""
    with browsing(server.url, clean_console=True) as page:
        page.clock.install()
        scrapes = []
        page.on("request", lambda request: scrapes.append(request.url) if "metrics" in request.url else None)
        visit(page, server.url)
        page.get_by_role("button", name="Cat").click()
        expect(card(page, "cat.jpg").locator(".bars li")).to_have_count(5)
        for _ in range(3):
            with page.expect_response("**/metrics"):
                page.clock.run_for(2100)
        expect(page.locator("#batch")).to_have_text("1.0")
        expect(page.locator("#p50")).to_have_text(re.compile(r"[\d.]+ m?s"))
        expect(page.get_by_role("img", name="Requests per second")).to_be_visible()
        page.evaluate(
            """() => {
                Object.defineProperty(document, "hidden", { value: true, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
        count = len(scrapes)
        page.clock.run_for(20_000)
        assert len(scrapes) == count
        with page.expect_response("**/metrics"):
            page.evaluate(
                """() => {
                    delete document.hidden;
                    document.dispatchEvent(new Event("visibilitychange"));
                }"""
            )


# Errors and API keys


def test_page_says_when_the_service_has_stopped() -> None:
    """Its state says so, and an image that is added gets the reason, with a button to try again."""
    with (
        serving(Settings(model="cifar10")) as service,
        browsing(service.url, clean_console=True) as page,
    ):
        visit(page, service.url)
        expect(page.get_by_text("Connected")).to_be_visible()
        service.stop()
        expect(page.get_by_text("The service cannot be reached")).to_be_visible()
        choose(page, PHOTOGRAPHS / "cat.jpg")
        expect(card(page, "cat.jpg")).to_contain_text("Cannot reach the service")
        expect(card(page, "cat.jpg").get_by_role("button", name="Try again")).to_be_visible()
        page.get_by_role("button", name="Dog").click()
        expect(page.get_by_role("alert").filter(has_text="Cannot reach the service")).to_be_visible()


def test_page_asks_for_the_api_key(jpeg: bytes) -> None:
    """A wrong key is reported; with the right one, images that failed before are classified."""
    settings = Settings(model="cifar10", api_keys=f"{KEY} predict, {METRICS_KEY}")
    with serving(settings) as service, browsing(service.url, clean_console=True) as page:
        page.goto(f"{service.url}/")
        key = page.get_by_label("API key")
        expect(key).to_be_focused()
        assert violations(page) == []
        choose(page, file("a.jpg", jpeg))
        expect(card(page, "a.jpg")).to_contain_text("missing API key")
        key.fill("wrong-0123456789")
        key.press("Enter")
        expect(page.get_by_text("does not accept this API key: unknown API key")).to_be_visible()
        key.fill(KEY)
        key.press("Enter")
        expect(card(page, "a.jpg").locator(".bars li")).to_have_count(5)
        expect(key).to_be_hidden()
        expect(page.get_by_text("This API key does not have the scope metrics")).to_be_visible()

        page.reload()  # the key is kept in the tab, and nowhere else
        expect(page.get_by_role("heading", name="Classes")).to_be_visible()
        assert page.evaluate("Object.values(sessionStorage)") == [KEY]
        assert page.evaluate("[document.cookie, localStorage.length, location.href]") == [
            "",
            0,
            f"{service.url}/",
        ]
        page.get_by_role("button", name="Forget API key").click()
        expect(key).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        key.fill(METRICS_KEY)
        key.press("Enter")
        expect(page.locator("#rate")).to_be_visible()
        expect(page.get_by_text("scope metrics")).to_be_hidden()


def test_curl_command_does_not_contain_the_api_key(jpeg: bytes) -> None:
    """Commands are pasted into chats and scripts: the command reads the key from a variable."""
    settings = Settings(model="cifar10", api_keys=METRICS_KEY)
    with serving(settings) as service, browsing(service.url, clean_console=True) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto(f"{service.url}/")
        page.get_by_label("API key").fill(METRICS_KEY)
        page.get_by_role("button", name="Use key").click()
        choose(page, file("a.jpg", jpeg))
        card(page, "a.jpg").get_by_role("button", name="Copy curl").click()
        command = copied(page, "curl ")
    assert METRICS_KEY not in command
    assert '-H "Authorization: Bearer $API_KEY"' in command


def test_page_waits_as_long_as_the_service_asks(jpeg: bytes) -> None:
    """Over the rate of a key, images wait for Retry-After and are then classified."""
    settings = Settings(model="cifar10", api_keys=f"{KEY} predict 2/s", public_scopes="metrics")
    statuses: list[int] = []

    def record(response: Response) -> None:
        if "/predict" in response.url:
            statuses.append(response.status)

    with serving(settings) as service, browsing(service.url, clean_console=True) as page:
        page.on("response", record)
        page.goto(f"{service.url}/")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use key").click()
        choose(page, *(file(f"{number}.jpg", jpeg) for number in range(4)))
        expect(page.locator(".card[data-state=paused]").first).to_contain_text("Sent again after")
        expect(page.locator(".card[data-state=done]")).to_have_count(4, timeout=60_000)
    assert statuses.count(200) == 4
    assert 429 in statuses


def test_link_to_the_api_page_is_shown_if_the_page_exists() -> None:
    for api_docs in (True, False):
        with (
            serving(Settings(model="cifar10", api_docs=api_docs)) as service,
            browsing(service.url, clean_console=True) as page,
        ):
            with page.expect_response(
                lambda response: (
                    response.headers["content-type"] == "application/json"
                    and response.request.headers["accept"] == "application/json"
                )
            ):
                visit(page, service.url)
            expect(page.get_by_role("link", name="Metrics")).to_be_visible()
            expect(page.get_by_role("link", name="API")).to_have_count(1 if api_docs else 0)


# Layout and accessibility


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_accessible(server: Running, color_scheme: str, width: int) -> None:
    """axe-core finds nothing: before, with results and errors as cards, and with the table."""
    options = {"color_scheme": color_scheme, "has_touch": width < 500, "is_mobile": width < 500}
    with browsing(server.url, width, 844, clean_console=True, **options) as page:
        visit(page, server.url)
        assert violations(page) == []
        choose(page, PHOTOGRAPHS / "cat.jpg", file("x" * 200 + ".jpg", b"text", "text/plain"))
        expect(page.get_by_text("2 images, 1 failed")).to_be_visible()
        expect(card(page, "cat.jpg").locator(".picture")).to_be_visible()
        assert violations(page) == []
        photographed(page, f"page-{color_scheme}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_text("Table", exact=True).click()
        expect(page.get_by_role("row")).to_have_count(3)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", background))) / 3
        assert brightness < 40 if color_scheme == "dark" else brightness > 220


def test_phone_has_a_button_for_the_camera(server: Running) -> None:
    """The button asks for the camera at the back; a desktop with a mouse does not have it."""
    for is_phone in (True, False):
        with browsing(server.url, 390, 844, has_touch=is_phone, is_mobile=is_phone) as page:
            visit(page, server.url)
            expect(page.get_by_text("Take a photograph")).to_be_visible(visible=is_phone)
            assert page.locator("#camera").get_attribute("capture") == "environment"


def test_page_is_used_with_the_keyboard(page: Page) -> None:
    """Tab reaches the chooser and the sample images, with a visible focus; Enter classifies."""
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.name") == "cat.jpg":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(card(page, "cat.jpg").locator(".bars li")).to_have_count(5)
    card(page, "cat.jpg").get_by_role("button", name="Remove").press("Enter")
    expect(page.get_by_label("Choose images")).to_be_focused()
