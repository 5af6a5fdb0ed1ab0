"""The documentation as a site: it builds without a warning, has the whole API, and asks no other host for anything."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    finished = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_the_page_of_the_api_has_every_name():
    module = ast.parse((ROOT / "higgs_native" / "__init__.py").read_text(encoding="utf-8"))
    (exported,) = (
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: higgs_native\.(\w+)$", page, re.MULTILINE)) == sorted(exported)


def test_lists_and_tables_are_apart_from_paragraphs():
    """GitHub reads them without a blank line, Python-Markdown does not."""
    joined = []
    for page in (*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("README.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for block in re.split(r"\n\s*\n", text):
            lines = [line for line in block.splitlines() if not line.startswith("#")]
            if any(line.startswith(("- ", "|")) for line in lines) and not lines[0].startswith(("- ", "|")):
                joined.append((page.name, lines[0]))
    assert joined == []


@needs_mkdocs
def test_the_site_has_every_page_and_its_links(site):
    pages = {path.name for path in site.glob("*.html")}
    assert {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")} <= pages
    assert {"index.html", "contributing.html", "changelog.html", "examples.html", "train_voice.html"} <= pages
    start = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="usage.html#higgs-tts-3"' in start
    assert 'href="contributing.html"' in start
    assert 'id="higgs_native.HiggsAudio.speak"' in (site / "api.html").read_text(encoding="utf-8")


@needs_mkdocs
def test_markdown_is_read_as_on_github(site):
    for path in site.glob("*.html"):
        _, _, article = path.read_text(encoding="utf-8").partition("<article")
        text = re.sub(r"<pre.*?</pre>", "", article, flags=re.DOTALL)
        assert re.findall(r"(?:<p>|\n)\|.*|```|:::|<code>[^<]*\\\||\]\([^)]*\)", text) == []


@needs_mkdocs
def test_a_page_loads_nothing_from_other_hosts(site):
    for path in site.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=.?(?:https?:)?//[^>]*", page) == []


@needs_mkdocs
@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        (None, "the code, [usage](usage.md#voices), [start](index.md), [Hub](https://hub.example), `a|b`"),
        (
            "https://code.example/higgs/",
            "[the code](https://code.example/higgs/blob/main/higgs_native/speech.py), [usage](usage.md#voices), "
            "[start](index.md), [Hub](https://hub.example), `a|b`",
        ),
    ],
)
def test_links_to_sources_lead_to_the_repository(repository, expected):
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    written = (
        "[the code](../higgs_native/speech.py), [usage](usage.md#voices), [start](../README.md), "
        "[Hub](https://hub.example), `a\\|b`"
    )
    assert hooks.with_links_of_the_site(written, ROOT / "docs", repository) == expected
