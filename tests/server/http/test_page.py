"""The page at `/`: its files, and what a browser does with them."""

import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from higgs_native.server.http import app
from tests.helpers.waiting import PATIENCE


PAGE = app._PAGE
FILES = sorted(PAGE.iterdir())


class Elements(HTMLParser):
    """All elements of a page, with their attributes."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed((PAGE / "index.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def elements():
    return Elements().found


def test_all_that_the_page_loads_is_there(server, elements):
    response = server.client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    loaded = [attributes.get("src") or attributes.get("href") for _, attributes in elements]
    loaded = [name for name in loaded if name and not name.startswith("#")]
    assert {"page/page.js", "page/page.css", "docs"} <= set(loaded)
    for name in loaded:
        assert server.client.get(f"/{name}").status_code == 200, name
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/"):
        assert server.client.get(path).status_code == 404


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_comes_from_another_host(path):
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w+\.\w", text)


def test_the_program_finds_its_elements(elements):
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'\$\("(\w[\w-]*)"\)', (PAGE / "page.js").read_text(encoding="utf-8")))
    assert used
    assert used <= set(ids)


def test_every_field_has_a_label(elements):
    labeled = {attributes["for"] for tag, attributes in elements if tag == "label" and "for" in attributes}
    fields = [attributes for tag, attributes in elements if tag in ("input", "textarea")]
    assert len(fields) >= 8
    for attributes in fields:
        assert attributes.get("id") in labeled or attributes.get("aria-label"), attributes


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_speaks_records_and_downloads(start, browser, tmp_path, scheme):
    (tmp_path / "voices").mkdir()
    server = start(voices_folder=tmp_path / "voices")
    context = browser.new_context(color_scheme=scheme, accept_downloads=True, permissions=["microphone"])
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if server.url not in request.url else None)
    page.goto(server.url)
    page.wait_for_selector("#turns select option", state="attached")

    page.fill("#turns textarea", "The sun rises in the east.")
    page.click("#add-turn")
    page.keyboard.type("We walk home.")  # the new turn has the focus
    page.locator("#turns select").nth(1).select_option("masculine")
    page.get_by_text("Scene and settings").click()
    page.fill("#seed", "7")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#download:not([hidden])")
    assert "seed 7" in page.inner_text("#status")
    with page.expect_download() as download:
        page.click("#download")
    samples, rate = soundfile.read(download.value.path(), dtype="int16")
    text = "[SPEAKER0] The sun rises in the east.\n\n[SPEAKER1] We walk home."
    spoken = server.speak(input=text, voice="feminine,masculine", seed=7, response_format="pcm")
    assert rate == 24_000
    assert samples.tobytes() == spoken.content
    drawn = page.evaluate("""() => [...document.querySelectorAll('canvas')].map(canvas => new Set(
        canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size)""")
    assert min(drawn) > 2

    page.get_by_text("A voice of your own").click()
    page.click("#record")
    page.wait_for_timeout(1500)
    page.click("#record")
    page.wait_for_selector("#advice li")
    assert "its words are not given" in page.inner_text("#advice")
    page.fill("#name", "me")
    page.click("#keep")
    page.wait_for_selector("#advice li:has-text('The voice me is kept')")
    assert page.locator("#turns select").first.input_value() == "me"
    kept, _ = soundfile.read(io.BytesIO((tmp_path / "voices" / "me.wav").read_bytes()))
    assert np.abs(kept).max() > 0.01

    page.fill("#turns textarea", "")
    page.locator(".drop").nth(1).click()
    page.click("#speak")
    assert "Write a text first" in page.inner_text("#status")
    assert problems == []
    context.close()
