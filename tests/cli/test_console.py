"""Standard streams that are closed, full, or can't show a character."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import higgs_native
from tests.cli.conftest import RATE


@pytest.fixture
def shell(run, model):
    """Runs the command with a shell's redirections, in the folder of `run`; `MODEL` in an argument is the model."""

    def shell(redirections, *arguments, **variables):
        package = str(Path(higgs_native.__file__).parent.parent)
        arguments = [str(model) if argument == "MODEL" else str(argument) for argument in arguments]
        return subprocess.run(
            ["sh", "-c", f'"$@" {redirections}', "sh", sys.executable, "-m", "higgs_native", *arguments],
            env={**os.environ, "PYTHONPATH": package, **variables},
            capture_output=True,
        )

    return shell


SPEAK = ("speak", "Hello there.", "--model", "MODEL", "--max-new-tokens", 30, "--seed", 1)


@pytest.mark.parametrize("redirections", ["2>&-", "<&- >&- 2>&-", "2>/dev/full", "1>&-"])
def test_speech_needs_no_standard_streams(run, shell, redirections):
    finished = shell(redirections, *SPEAK)
    assert finished.returncode == 0
    assert finished.stdout == b""
    assert len(soundfile.read(run.work / "out.wav")[0]) == 960 * 22
    assert os.listdir(run.work) == ["out.wav"]


def test_notices_do_not_go_into_the_audio(run, shell):
    assert shell("", *SPEAK, "--stream", "out.pcm").returncode == 0
    finished = shell("2>&-", *SPEAK, "--stream", "-")
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout == (run.work / "out.pcm").read_bytes()
    assert len(np.frombuffer(finished.stdout, "<i2")) == 960 * 22


@pytest.mark.parametrize(
    ("redirections", "arguments", "message"),
    [
        ("<&-", ("speak", "-"), "text must be given, got -, and standard input is closed"),
        ("<&-", ("read", "-"), "text must be given, got -, and standard input is closed"),
        (">&-", ("speak", "Hi.", "--stream", "-"), "--stream must be a file or a named pipe, got -"),
    ],
)
def test_a_closed_stream_that_is_needed_is_named(shell, redirections, arguments, message):
    finished = shell(redirections, *arguments)
    assert finished.returncode == 2
    errors = finished.stderr.decode()
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1


def test_files_do_not_get_the_number_of_a_closed_stream(run_python):
    program = (
        "import os, sys\nos.close(0)\nos.close(2)\nsys.stdin = sys.stderr = None\n"
        "from higgs_native.cli.console import prepare_streams\nprepare_streams()\n"
        "print(os.open('file', os.O_CREAT) > 2, os.readlink('/proc/self/fd/0'), os.readlink('/proc/self/fd/2'))"
    )
    assert run_python(program).stdout == "True /dev/null /dev/null\n"


def test_characters_that_the_terminal_lacks_are_escaped(run, shell):
    soundfile.write(run.work / "Zoë.wav", np.zeros(RATE), RATE)
    (run.work / "Zoë.txt").write_text("你好。", encoding="utf-8")
    entries = {"a\x1b[2J": {"audio_file": "Zoë.wav", "transcript": "b\nc\x07"}}
    (run.work / "config.json").write_text(json.dumps(entries))
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    finished = shell("", "voices", ".", **ascii_only)
    assert finished.returncode == 0
    lines = finished.stdout.decode("ascii").splitlines()
    assert lines[0] == "Zo\\xeb\t\\u4f60\\u597d\\u3002"
    assert [line for line in lines if not line.startswith(" ")][1] == "a\\x1b[2J\tb c"  # the bell is no word
    assert shell("", "voices", ".").stdout.decode().splitlines()[0] == "Zoë\t你好。"


def test_a_reader_that_has_left(shell):
    finished = shell("| true", "info")
    assert finished.stderr == b""


def test_a_full_disk_is_told_once(shell):
    finished = shell(">/dev/full", "info")
    assert finished.returncode == 1
    assert finished.stderr.decode().startswith("error: OSError: [Errno 28] No space left on device")
    assert finished.stderr.count(b"\n") == 1
