"""Every operator has its parts, each under its family's name: a new one that lacks a part fails here."""

import re
from pathlib import Path

import pytest
import torch

from higgs_native import ops, reference


ROOT = Path(__file__).resolve().parents[2]


def families() -> dict[str, list[str]]:
    """The operators of each family, as csrc/ops.cpp lists them."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "csrc" / "ops.cpp").read_text().splitlines():
        if family := re.fullmatch(r"  // (\w+)", line):
            found[family[1]] = []
        elif operator := re.search(r'"(\w+)\(Tensor', line):
            next(reversed(found.values())).append(operator[1])
    return found


FAMILIES = families()
OPERATORS = [(family, name) for family, names in FAMILIES.items() for name in names]


def test_all_operators_are_listed():
    registered = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("higgs_native::")]
    assert sorted(f"higgs_native::{name}" for _, name in OPERATORS) == sorted(registered)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_one_basename(family):
    for path in (
        f"csrc/args/{family}.h",
        f"csrc/cpu/{family}.cpp",
        f"csrc/cuda/{family}.cu",
        f"higgs_native/ops/{family}.py",
        f"higgs_native/reference/{family}.py",
        f"tests/ops/test_{family}.py",
    ):
        assert (ROOT / path).is_file(), path


def test_a_native_file_belongs_to_a_family():
    """Every source file of a backend is a family's, except launch.cu."""
    for path in (*(ROOT / "csrc" / "cpu").glob("*.cpp"), *(ROOT / "csrc" / "cuda").glob("*.cu")):
        assert path.stem.removesuffix("_kernels") in {*FAMILIES, "launch"}, path


@pytest.mark.parametrize(("family", "name"), OPERATORS)
def test_an_operator_has_its_fake_its_reference_and_its_test(family, name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"higgs_native::{name}", "Meta")
    assert callable(getattr(ops, name, None))
    assert callable(getattr(reference, name, None))
    test = "".join(path.read_text() for path in sorted((ROOT / "tests" / "ops").glob(f"test_{family}*.py")))
    assert re.search(rf'ops\.{name}\(|"{name}"', test), f"{family} tests no {name}"
    assert re.search(rf'reference\.{name}\(|"{name}"|implementation\.{name}\(', test), (
        f"no test has {name}'s reference"
    )
