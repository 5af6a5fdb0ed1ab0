"""The documentation: links, programs, names and figures are right."""

import ast
import json
import pkgutil
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest


ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages():
    assert {"README.md", "how_it_works.md", "migration.md", "numerics.md", "troubleshooting.md"} <= {
        page.name for page in PAGES
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_parse(page):
    for program in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        ast.parse(program)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_files_that_the_docs_name_exist(page):
    text = page.read_text(encoding="utf-8")
    modules = re.findall(r"-m (benchmarks[\w.]*)", text)
    files = [ROOT.joinpath(*module.split(".")) for module in modules]
    missing = [path for path in files if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file())]
    named = re.findall(r"`((?:\.ci|benchmarks|csrc|docs|examples|higgs_native|python|tests)/[\w./]*)`", text)
    # X is the basename of any family of operators.
    missing += [name for name in named if not re.search(r"\bX\b|_X\b|X_", name) and not (ROOT / name).exists()]
    assert missing == []


def test_names_that_the_changelog_gives_exist():
    rows = re.findall(
        r"^\| `higgs_native.*\| (`higgs_native.*`) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    names = [name for row in rows for name in re.findall(r"`(.+?)`", row)]
    assert "higgs_native.audio_tokenizer.config" in names
    for name in names:
        pkgutil.resolve_name(name)


def test_the_page_of_environment_variables_is_complete():
    python = [path for folder in ("higgs_native", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    patterns = (r'"(HIGGS_NATIVE_\w+)"', r'environ(?:\.\w+\(|\[)"(\w+)"', r'getenv\("(\w+)"\)')
    read = {
        name
        for path in [*python, *(ROOT / "csrc").rglob("*.*")]
        for pattern in patterns
        for name in re.findall(pattern, path.read_text(encoding="utf-8"))
    }
    assert {"HIGGS_NATIVE_VOICES", "HIGGS_NATIVE_ISA", "OMP_NUM_THREADS"} <= read
    read.remove("HIGGS_NATIVE_TEST_CLUSTER")  # a test sets it for the processes that it starts
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert {name for name in read if f"`{name}`" not in page} == set()
    assert set(re.findall(r"`(HIGGS_NATIVE_\w+)`", page)) <= read


def messages(source: str) -> list[str]:
    """The strings of a module, with NUL in place of what f-strings fill in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_the_messages_that_the_docs_explain_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (.+?) \| ", page.partition("| message | meaning |\n|---|---|\n")[2], re.MULTILINE)
    assert cells
    raised = [text for path in (ROOT / "higgs_native").rglob("*.py") for text in messages(path.read_text("utf-8"))]
    missing = []
    for explained in (message for cell in cells for message in re.findall(r"`(.+?)`", cell)):
        pattern = ".*".join(re.escape(part) for part in explained.split("..."))
        if not any(re.search(pattern, text, re.DOTALL) for text in raised):
            missing.append(explained)
    assert missing == []


def test_the_table_of_speed_is_that_of_the_reports():
    formats = ("bfloat16", "int8", "int4")
    results = ROOT / "benchmarks" / "results"
    layers_8 = json.loads((results / "cpu.json").read_text())["frame"]["frame"]
    (at_512,) = [frame for frame in layers_8 if frame["position"] == 512]
    # The newest runs come first.
    layers_28: dict[str, dict] = {}
    for run in json.loads((results / "frame_28_layers.json").read_text())["runs"]:
        (frame,) = run["frame"]
        layers_28 |= {format: frame[format] for format in formats if format in frame and format not in layers_28}
    speech = json.loads((results / "speech.json").read_text())
    cells = (
        [f"{layers_28[format]['ms']['median']:.0f} ms" for format in formats],
        [f"{100 * layers_28[format]['share_of_read_bandwidth']:.0f} %" for format in formats],
        [f"{at_512[format]['times_as_fast_as_transformers']:.1f}" for format in formats],
        [f"{speech[format]['real_time_factor']['median']:.1f}" for format in formats],
        [f"{speech[format]['resident_gb']:.1f} GB" for format in formats],
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [row for row in cells if f"| {' | '.join(row)} |" not in readme] == []


def test_the_table_of_the_server_is_that_of_its_report():
    report = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text())
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for rate in report["rates"]:
        first = rate["first_audio_ms"]
        late = f"{rate['streams_with_underruns']} of {rate['outcomes']['complete']}"
        streams = f"{rate['audio_seconds_per_second']:.0f}"
        assert f"| {rate['rate']:g} | {first['p50']:.0f} ms | {first['p95']:.0f} ms | {late} | {streams} |" in page


def test_the_table_of_clients_is_that_of_its_report():
    report = json.loads((ROOT / "benchmarks" / "results" / "serving_clients.json").read_text())
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")

    def span(runs: list[dict], clients: int, digits: int = 1) -> str:
        figures = [run["audio_seconds_per_second"] for run in runs if run["clients"] == clients]
        return f"{min(figures):.{digits}f} to {max(figures):.{digits}f}"

    assert f"| 10 s | {span(report['runs'], 1)} | {span(report['runs'], 8)} | |" in page
    ours, plain = report["beside_transformers"].values()
    assert f"| 2 s | | {span(ours, 8)} | {span(plain, 8, 2)} |" in page


def test_the_tables_of_performance_are_those_of_the_reports():
    results = ROOT / "benchmarks" / "results"
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    def report(name: str) -> dict:
        return json.loads((results / f"{name}.json").read_text())

    def frame_cell(frame: dict, name: str) -> str:
        figures = frame[name]
        ratio = figures.get("times_as_fast_as_transformers")
        return f"{figures['ms']['median']:.0f} ms, {100 * figures['share_of_read_bandwidth']:.0f} %" + (
            f", **{ratio:.1f} x**" if ratio else ""
        )

    prompts = report("frame_amx")["prefill"]
    cells = [
        f"{prompts[name]['s']['median']:.2f} s, **{prompts[name]['times_as_fast_as_transformers']:.1f} x**"
        for name in ("bfloat16", "int8", "int4")
    ]
    rows = [[*cells, f"{prompts['transformers']['s']['median']:.2f} s"]]
    first, second = report("tts3_frame")["frame"], report("tts3_frame_int8_fp8")["frame"]
    for one, other in zip(first, second, strict=True):
        pairs = ((one, "bfloat16"), (other, "fp8"), (other, "int8"), (one, "int4"), (one, "transformers"))
        rows.append([f"{one['position']:,}", *(frame_cell(frame, name) for frame, name in pairs)])
    busy = report("contention")
    for name in ("embedded_voice", "bfloat16", "int4", "transformers"):
        rows.append([f"{busy[name][count]['times_idle']:.1f}" for count in ("1", "2", "4", "6")])
    load = report("load")
    for name in ("load_s", "packed_load_s", "packed_first_frame_s"):
        rows.append([f"{load[f'{format}_{name}']['median']:.2f} s" for format in ("bfloat16", "int8", "int4")])
    for gpu in ("H100", "H200"):
        for model, title in (("v2", "Higgs Audio V2"), ("tts_3", "Higgs TTS 3")):
            for format, entry in report("cuda_model")[gpu][model].items():
                ms, streams = entry["frame_ms_at_1k"], entry["batch_64_at_512_audio_s_per_s"]
                frame = f"{ms['expected']:.2f} ms ({ms['best']:.2f} to {ms['worst']:.2f})"
                prompt = f"{entry['prompt_of_250_ms']['expected']:.1f} ms"
                rows.append([f"{gpu}, {title}, {format}", frame, f"{streams['expected']} s", prompt])
    assert [row for row in rows if f"| {' | '.join(row)} |" not in page] == []


def test_the_errors_of_subtitles_are_those_of_the_report():
    errors = json.loads((ROOT / "benchmarks" / "results" / "subtitles.json").read_text())["errors"]
    page = " ".join((ROOT / "docs" / "usage.md").read_text(encoding="utf-8").split())
    both, alone = (
        [1000 * errors[name][figure] for figure in ("median", "percentile_90")]
        for name in ("letters_and_pauses", "letters_alone")
    )
    assert f"off by less than {both[0]:.0f} ms and nine in ten by less than {both[1]:.0f} ms" in page
    assert f"from letters alone it is {alone[0]:.0f} and {alone[1]:.0f} ms" in page


def test_the_tests_that_the_docs_name_exist():
    named = set(re.findall(r"`(test_\w+)`", "".join(page.read_text(encoding="utf-8") for page in PAGES)))
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert [name for name in sorted(named) if f"def {name}(" not in written] == []


def test_the_figures_are_drawn_by_their_script(run_python, tmp_path):
    run = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    finished = run_python(run, str(ROOT / "docs" / "draw_figures.py"), "--out", str(tmp_path / "drawn"))
    assert finished.returncode == 0, finished.stderr
    drawn = sorted((tmp_path / "drawn").iterdir())
    for path in drawn:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    committed = [path.name for path in sorted((ROOT / "docs" / "figures").glob("*.svg"))]
    assert [path.name for path in drawn] == committed
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in committed if f"figures/{name}" not in shown] == []
