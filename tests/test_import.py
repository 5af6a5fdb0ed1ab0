"""What an import of the package loads and offers, and where it finds its compiled module and libraries."""

import ast
import os
import shutil
from pathlib import Path

import pytest

import higgs_native
from higgs_native import _C


# Imports the package from the folders that it is given, and from no other one. A folder that holds the package and
# others is replaced by one with links to the others.
PROGRAM = """
import os, sys
others = []
for number, entry in enumerate(sys.path):
    if os.path.exists(os.path.join(entry, "higgs_native")):
        names = [name for name in os.listdir(entry) if not name.startswith("higgs_native")]
        others.append(os.path.abspath(f"without_{number}"))
        os.mkdir(others[-1])
        for name in names:
            os.symlink(os.path.join(os.path.abspath(entry), name), os.path.join(others[-1], name))
    else:
        others.append(entry)
sys.path = sys.argv[1:] + others
import higgs_native
from higgs_native import _C, ops
print(higgs_native.__file__, _C.__file__)
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The package's sources, without compiled files."""
    sources = Path(higgs_native.__file__).resolve().parent
    without = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(sources, tmp_path / "checkout" / "higgs_native", ignore=without, copy_function=os.symlink)
    return tmp_path / "checkout"


@pytest.fixture
def installed(checkout, tmp_path) -> Path:
    """The package with its compiled files."""
    shutil.copytree(checkout, tmp_path / "installed", symlinks=True)
    for path in Path(_C.__file__).resolve().parent.glob("*.so"):
        (tmp_path / "installed" / "higgs_native" / path.name).symlink_to(path)
    return tmp_path / "installed"


def test_a_checkout_takes_the_compiled_files_of_an_installed_package(run_python, checkout, installed):
    finished = run_python(PROGRAM, str(checkout), str(installed))
    assert finished.returncode == 0, finished.stderr
    package, module = map(Path, finished.stdout.split())
    assert package.is_relative_to(checkout)
    assert module.is_relative_to(installed)


def test_a_package_with_compiled_files_takes_no_module_from_elsewhere(run_python, checkout, installed):
    (checkout / "higgs_native" / "only_in_checkout.py").touch()
    program = PROGRAM + "import higgs_native.only_in_checkout"
    finished = run_python(program, str(installed), str(checkout))
    assert finished.returncode == 1
    assert all(Path(path).is_relative_to(installed) for path in finished.stdout.split())
    assert "No module named 'higgs_native.only_in_checkout'" in finished.stderr


def test_missing_compiled_files_are_reported_in_one_line(run_python, checkout):
    finished = run_python(PROGRAM, str(checkout))
    assert finished.returncode == 1
    message = finished.stderr.splitlines()[-1]
    assert message.startswith("ImportError: higgs_native._C can't be imported")
    assert "pip install ." in message


def test_an_import_waits_with_torch_until_a_name_is_used(run_python):
    program = """
import sys
import higgs_native
assert "torch" not in sys.modules
higgs_native.HiggsAudio
assert "torch" in sys.modules
"""
    finished = run_python(program)
    assert finished.returncode == 0, finished.stderr


def test_every_name_is_offered_and_found():
    assert set(higgs_native._MODULE_OF) == set(higgs_native.__all__) <= set(dir(higgs_native))
    assert {"__version__", "__path__"} < set(dir(higgs_native))
    for name in higgs_native.__all__:
        assert getattr(higgs_native, name).__name__ == name
    names: dict[str, object] = {}
    exec("from higgs_native import *", names)
    assert set(higgs_native.__all__) <= set(names)


def test_type_checkers_see_the_same_names_in_the_same_modules():
    tree = ast.parse(Path(higgs_native.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == higgs_native._MODULE_OF


def test_modules_are_attributes_and_unknown_names_are_not():
    assert higgs_native.errors.PromptError is higgs_native.PromptError
    with pytest.raises(AttributeError, match="module 'higgs_native' has no attribute 'HigsAudio'"):
        higgs_native.HigsAudio  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'HigsAudio'"):
        exec("from higgs_native import HigsAudio", {})
