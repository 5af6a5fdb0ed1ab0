"""Layers of the package: each room imports only from rooms below it, and nothing imports each other in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import higgs_native


ROOT = Path(higgs_native.__file__).parent
# From the top floor down. Rooms of one floor do not import each other.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("server",),
    ("higgs_native", "compat", "training"),  # higgs_native: the names that the package itself offers
    ("long_form",),
    ("pipeline",),
    ("replies",),
    ("streaming", "speech", "calibration"),
    ("failure_checks", "subtitles"),
    ("generation", "manuscript"),
    ("prompt",),
    ("testing",),
    ("audio_tokenizer",),
    ("audio", "english"),
    ("model",),
    ("checkpoint",),
    ("reference",),
    ("ops",),
    ("utils",),
    ("convention",),
    ("errors",),
    ("_C",),
)
FLOOR_OF = {room: index for index, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


COMPILED = "higgs_native._C"
MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(tree: ast.AST) -> set[str]:
    """The modules of the package that the import statements of `tree` name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from package import name` names a module if there is one of that name, else the package.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES or name == COMPILED else node.module for name in inner}
    return {name for name in found if name.split(".")[0] == "higgs_native"}


def room(module: str) -> str:
    return (module.split(".")[1:] or ["higgs_native"])[0]


IMPORTS = {name: imported(ast.parse(path.read_text())) for name, path in MODULES.items()}


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} == set(FLOOR_OF) - {"_C"}


def test_no_import_is_relative():
    """`imported` reads absolute imports only."""
    for name, path in MODULES.items():
        relative = [
            n.lineno for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level
        ]
        assert not relative, f"{name}, lines {relative}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_rooms_below(module):
    here = room(module)
    upward = [
        name for name in sorted(IMPORTS[module]) if room(name) != here and FLOOR_OF[room(name)] <= FLOOR_OF[here]
    ]
    assert not upward, f"{module} imports from its own floor or a higher one: {', '.join(upward)}"


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_parts_of_a_package_do_not_import_each_other_in_a_circle(package):
    """Its modules and the packages in it, each as a whole. This holds for every package, so for all modules too."""

    def part(module: str) -> str:
        return ".".join(module.split(".")[: package.count(".") + 2])

    inside = [module for module in MODULES if f"{module}.".startswith(f"{package}.")]
    imports = {part(module): set() for module in inside}
    for module in inside:
        imports[part(module)] |= {part(name) for name in IMPORTS[module] if name in inside} - {part(module)}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
