"""Signals end a command with their exit code, without a traceback and without a half-written file."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import higgs_native
from tests.helpers.interruptions import COMMANDS, SIGNALS, Interruption
from tests.helpers.waiting import PATIENCE


@pytest.fixture
def start(run, monkeypatch):
    """Starts a program in the folder of `run`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(higgs_native.__file__).parent.parent))

    def start(program, *arguments):
        # A program that pytest starts in the background would ignore SIGINT, and one under nohup SIGHUP.
        restored = (
            "signal.signal(signal.SIGINT, signal.default_int_handler)",
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)",
        )
        program = "\n".join(["import signal", *restored, program])
        arguments = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


SAVE_SLOWLY = f"""
import sys, time
import soundfile
from higgs_native.cli import main

def write_slowly(file, samples):
    print("writing", flush=True)
    for _ in range({round(PATIENCE * 20)}):  # a signal just before a sleep is handled after it
        time.sleep(0.05)

soundfile.SoundFile.write = write_slowly
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("command", "left"), [("speak", []), ("read", ["out.wav.parts"])])
def test_a_signal_leaves_nothing_half_written(run, start, command, left, number):
    if command == "read":  # its chunks are written; the file is not
        assert run("read", "Good morning.", "--seed", 1, "--folder", "out.wav.parts")[0] == 0
        (run.work / "out.wav").unlink()
    with start(SAVE_SLOWLY, command, "Good morning.", "--seed", "1") as process:
        assert process.stdout.readline() == "writing\n"
        assert f".out.wav.{process.pid}.tmp" in os.listdir(run.work)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    advice = "The same command goes on from out.wav.parts, where the finished chunks are."
    assert (errors.splitlines()[-1] == advice) is (command == "read")
    assert os.listdir(run.work) == left


IMPORT = """
import importlib.abc, os, sys
number = int(sys.argv.pop())

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Interrupt())
from higgs_native_command import main
main()
"""

EXIT = """
import atexit, os, sys
number = int(sys.argv.pop())
atexit.register(lambda: os.kill(os.getpid(), number))
from higgs_native_command import main
main()
"""

DESTRUCTOR = """
import os, sys
from higgs_native.cli import main
from higgs_native.prompt import voices

class Interrupt:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(1000):
            pass

def list_voices(folder):
    Interrupt()
    print("still here")
    return {}

voices.list_voices = list_voices
main(["voices"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("program", "sign"), [(IMPORT, 1), (EXIT, -1), (DESTRUCTOR, 1)])
def test_a_signal_shows_no_traceback(start, program, sign, number):
    """While torch is imported, while Python exits, and in a destructor, which would drop an exception."""
    arguments = [number] if program is DESTRUCTOR else ["info", number]
    with start(program, *arguments) as process:
        output, errors = process.communicate()
    assert process.returncode == (128 + number if sign > 0 else -number)
    assert errors == ""
    assert "still here" not in output


IGNORED = """
import os, signal, sys
from higgs_native.cli import main
from higgs_native.prompt import voices

def list_voices(folder):
    os.kill(os.getpid(), signal.SIGHUP)
    return {}

signal.signal(signal.SIGHUP, signal.SIG_IGN)
voices.list_voices = list_voices
main(["voices", "."])
"""


def test_what_nohup_ignores_stays_ignored(start):
    with start(IGNORED) as process:
        _, errors = process.communicate()
    assert (process.returncode, errors.count("\n")) == (0, 1)


def test_the_handlers_of_the_caller_are_restored(run):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert run("info")[0] == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_at_a_random_moment(command, tmp_path):
    if command == "train":
        import tests.helpers.transformers_reference  # noqa: F401 (lets peft import beside any torchaudio)

        pytest.importorskip("peft", reason="training needs the extra `train`")
    draw = random.Random(COMMANDS.index(command))
    with Interruption(command, tmp_path) as interruption:
        for number in SIGNALS:
            assert interruption.problems(number, draw.uniform(0, interruption.seconds)) == []


FROZEN = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 1000, file=sys.stderr))  # the last to run
from higgs_native_command import main
sys.argv = ["higgs-native", "--version"]
main()
"""


def test_the_exit_of_python_collects_no_garbage(run_python):
    assert run_python(FROZEN).stderr == "True\n"
