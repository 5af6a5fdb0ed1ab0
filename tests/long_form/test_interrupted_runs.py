"""Runs that are killed: another process continues them, and the result has the bits of an uninterrupted run."""

from tests.long_form.conftest import TEXT


# Each run is forked from a process that has loaded the model, so that it need not load it again. With one thread,
# since a child process does not have its parent's threads.
KILLS = """
import os, random, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from higgs_native import HiggsAudio, LongSpeech
from higgs_native.utils import files

engine = HiggsAudio.from_pretrained()

def start(text, name, before_run=lambda: None):
    process = os.fork()
    if process:
        return process
    try:
        before_run()
        LongSpeech(engine, text, name, seed=1).save(name + ".wav")
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)

def finish(process):
    _, status = os.waitpid(process, 0)
    return "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

def same(one, two):
    assert Path(one + ".wav").read_bytes() == Path(two + ".wav").read_bytes()
    parts = [{file.name: file.read_bytes() for file in Path(name).iterdir()} for name in (one, two)]
    assert parts[0] == parts[1], [sorted(names) for names in parts]
    assert not list(Path().glob(".*")), list(Path().glob(".*"))
"""

RANDOM_KILLS = (
    KILLS
    + """
text = sys.argv[1]
_, status, used = os.wait4(start(text, "whole"), 0)
assert status == 0
# The timer counts CPU seconds, which other load does not change, and its signal kills without running Python.
seconds = used.ru_utime + used.ru_stime
generator = random.Random(0)
kills = 0
while kills < 20:
    moment = generator.uniform(0.001, seconds / 20)
    if finish(start(text, "cut", lambda: signal.setitimer(signal.ITIMER_PROF, moment))) == "killed":
        kills += 1
        continue
    # It was faster than the first one, and has ended.
    same("whole", "cut")
    shutil.rmtree("cut")
    os.remove("cut.wav")
assert finish(start(text, "cut")) == 0
same("whole", "cut")
"""
)

KILLS_AT_RENAMES = (
    KILLS
    + """
text = sys.argv[1]
assert finish(start(text, "whole")) == 0
replace = os.replace
renames = len(list(Path("whole").iterdir())) + 1

def killed_at(number, after):
    def rename(*paths):
        nonlocal number
        number -= 1
        if number >= 0 or after:
            replace(*paths)
        if number < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    files.os.replace = rename

for number in range(renames):
    for after in (False, True):
        name = f"cut{number}{after}"
        assert finish(start(text, name, lambda: killed_at(number, after))) == "killed"
        assert finish(start(text, name)) == 0
        same("whole", name)
print(renames)
"""
)


def test_run_that_is_killed_at_20_random_moments(run_python):
    finished = run_python(RANDOM_KILLS, "\n\n".join([TEXT] * 8))
    assert finished.returncode == 0, finished.stderr


def test_run_that_is_killed_before_and_after_each_file(run_python):
    finished = run_python(KILLS_AT_RENAMES, "The sun rises.\n\nIt is cold.")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "6\n"  # run.json, two files for each of two chunks, and the whole
