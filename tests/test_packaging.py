"""What packagers read: the version, and what a build needs."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

import higgs_native


ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    assert f'\nversion = "{higgs_native.__version__}"\n' in PROJECT
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == higgs_native.__version__


def test_a_build_has_no_upper_bounds():
    """They would keep packagers from building with a newer release that works."""
    (requires,) = re.findall(r"^\[build-system\].*?^requires = \[(.*?)\]$", PROJECT, re.MULTILINE | re.DOTALL)
    assert "torch>=" in requires
    assert not re.search(r"<|==|~=", requires)


def test_packages_that_build_and_test_have_versions():
    """A new release of one changes nothing by itself: it comes with a change of constraints.txt."""
    listed = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    script = (ROOT / "tests" / "run.sh").read_text(encoding="utf-8")
    (tools,) = re.findall(r"pip\" install -q --disable-pip-version-check --no-compile (.*)$", script, re.MULTILINE)
    (tested,) = re.findall(r"^test = \[(.*?)^\]$", PROJECT, re.MULTILINE | re.DOTALL)
    names = [*tools.split(), *re.findall(r'^ *"([\w-]+)', tested, re.MULTILINE), "ruff", "clang-format"]
    assert {"cmake", "pytest"} <= set(names)
    missing = {name.lower() for name in names} - {"higgs-native", *listed}
    assert not missing


def test_forms_and_workflows_are_yaml():
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]
    assert len(files) >= 5
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_a_page_on_an_index_has_absolute_links(tmp_path):
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    script, repository = ROOT / ".github" / "add_links.py", "https://example.org/someone/higgs-native"
    subprocess.run([sys.executable, str(script), repository], cwd=tmp_path, check=True)

    def links(folder):
        return re.findall(r"\]\(([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))

    before, after = links(ROOT), links(tmp_path)
    assert len(before) == len(after)
    assert not [link for link in after if not link.startswith(("https://", "#"))]
    files = [link.removeprefix(f"{repository}/blob/HEAD/").partition("#")[0] for link in after if repository in link]
    assert len(files) > 10
    assert not [file for file in files if not (ROOT / file).is_file()]
    assert f'[project.urls]\nRepository = "{repository}"\n' in (tmp_path / "pyproject.toml").read_text(
        encoding="utf-8"
    )
