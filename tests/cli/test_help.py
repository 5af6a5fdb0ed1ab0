"""What comes at once: help, the version, shell completion and errors of usage import neither torch nor numpy."""

import pytest

import higgs_native


COMMANDS = ("speak", "read", "serve", "quantize", "train", "merge", "voices", "info")
# Runs the command, then prints the slow packages that it has imported.
PROGRAM = """
import sys
from higgs_native_command import main
sys.argv = ["higgs-native", *sys.argv[1:]]
try:
    main()
finally:
    slow = ("torch", "numpy", "transformers", "huggingface_hub", "tokenizers", "soundfile", "regex", "yaml")
    print(" ".join(["imported:", *(name for name in slow if name in sys.modules)]), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_slow(run_python, arguments):
    finished = run_python(PROGRAM, *arguments)
    assert (finished.returncode, finished.stderr) == (0, "imported:\n")
    assert finished.stdout.startswith((higgs_native.__version__, "Usage: higgs-native"))


def test_a_usage_error_imports_nothing_slow(run_python):
    finished = run_python(PROGRAM, "speak", "Hi.", "--top-k", "many")
    assert finished.returncode == 2
    error, imported = finished.stderr.splitlines()
    assert error.startswith("error: Invalid value for '--top-k'")
    assert imported == "imported:"


def test_the_module_is_the_program(run_python):
    finished = run_python("import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('higgs_native')")
    assert (finished.returncode, finished.stdout) == (0, f"{higgs_native.__version__}\n")


@pytest.mark.parametrize(("columns", "width"), [(60, 60), (100, 100), (400, 122)])
def test_help_is_as_wide_as_the_terminal_up_to_a_limit(run_python, columns, width):
    lines = run_python(PROGRAM, "speak", "--help", COLUMNS=str(columns)).stdout.splitlines()
    assert width - 20 < max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("", COMMANDS), ("q", ("quantize",)), ("speak --reference", ("--reference-audio", "--reference-text"))],
)
def test_completion_offers_commands_and_options(run_python, typed, offered):
    words = f"higgs-native {typed}"
    finished = run_python(
        PROGRAM, _HIGGS_NATIVE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))
    )
    assert (finished.returncode, finished.stderr) == (0, "imported:\n")
    assert tuple(finished.stdout.split()) == offered


def test_completion_can_be_shown_for_a_shell(run_python):
    finished = run_python(PROGRAM, _HIGGS_NATIVE_COMPLETE="source_bash")
    assert finished.returncode == 0
    assert "_HIGGS_NATIVE_COMPLETE=complete_bash" in finished.stdout
