"""Commands that a signal ends at random moments, the exit of Python included.

By hand, from the root of the repository: python -m tests.helpers.interruptions --moments 60
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import higgs_native
from higgs_native.testing.random_checkpoint import write_demo_checkpoint
from tests.helpers.waiting import PATIENCE
from tests.training.conftest import write_recordings


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
COMMANDS = ("speak", "read", "stream", "quantize", "train")
ROOT = Path(__file__).parents[2]
SPEAKING = ("higgs_native.pipeline", "higgs_native.long_form.saving", "higgs_native.cli.inputs", "soundfile")
# The first one lets torchaudio, which peft's transformers imports, be of another torch.
TRAINING = ("tests.helpers.transformers_reference", "higgs_native.training.trainer", "matplotlib.figure")
COMPARED = ("log.jsonl", "adapter_model.safetensors")
"""A training run's files that are the same to the bit; other files hold times."""
TEXT = "The sun rises.\n\nGood morning."

# Imports the command and the named modules, which takes seconds, then runs it in a forked process for each line: its
# folder and arguments. Answers with the process's id, then with its exit code.
SERVER = """
import atexit, gc, importlib, json, os, signal, sys
from higgs_native.cli import main

atexit.register(gc.freeze)  # as the command does
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    folder, arguments = json.loads(line)
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(folder)
        printed = os.open("../printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        main(arguments)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Interruption:
    """A command, its complete output, and the time that it takes. A context manager.

    Args:
        command: one of `COMMANDS`.
        folder: an existing, empty folder.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self.command = command
        self._work = folder / "work"
        self._printed = folder / "printed"
        model = folder / "model"
        write_demo_checkpoint(model)
        options = ["--model", str(model), "--seed", "1", "--max-new-tokens", "100"]
        if command == "train":
            write_training(folder, model)
        self._arguments, output = {
            "speak": (["speak", TEXT, *options, "--out", "out.wav"], "out.wav"),
            "read": (["read", TEXT, "--seed", "1", "--out", "out.wav"], "out.wav"),
            "stream": (["speak", TEXT, *options, "--stream", "out.pcm"], "out.pcm"),
            "quantize": (["quantize", str(model), "out"], "out"),
            "train": (["train", "../train.yaml"], "run"),
        }[command]
        self._output = self._work / output
        self._work.mkdir()
        # The installed package comes before the sources.
        places = os.pathsep.join([str(Path(higgs_native.__file__).parent.parent), str(ROOT)])
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, *SPEAKING, *(TRAINING if command == "train" else ())],
            env={**os.environ, "PYTHONPATH": places, "XDG_CACHE_HOME": str(folder / "cache")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        code, errors = self._run()
        assert code == 0, errors
        self._expected, self._names = self._contents(), os.listdir(self._work)
        shutil.rmtree(self._work)
        self._work.mkdir()
        start = time.monotonic()
        self._run()
        self.seconds = time.monotonic() - start

    def __enter__(self) -> "Interruption":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(PATIENCE)

    def problems(self, number: signal.Signals, moment: float) -> list[str]:
        """Interrupt the command `moment` seconds after its start, then run it again; return what is wrong."""
        problems = []
        shutil.rmtree(self._work)
        self._work.mkdir()
        if self.command not in ("quantize", "train"):  # which demand that there is no other output
            self._output.write_bytes(b"old")
        code, errors = self._run(number, moment)
        if code not in (-number, 128 + number, 0):
            problems.append(f"exit code {code}: {errors}")
        if "Traceback" in errors or "Exception" in errors:
            problems.append(f"a traceback: {errors}")
        contents = self._contents()
        if contents not in (self._expected, {Path(): b"old"}, {}) and self.command not in ("stream", "train"):
            problems.append("half-written output")
        if self.command == "quantize" and contents:
            shutil.rmtree(self._output)
        code, errors = self._run()
        if code != 0:
            problems.append(f"the next run fails with exit code {code}: {errors}")
        if self._contents() != self._expected:
            problems.append("the next run writes something else")
        if os.listdir(self._work) != self._names:
            problems.append(f"the next run leaves {os.listdir(self._work)}")
        return problems

    def _run(self, number: int = 0, moment: float = PATIENCE) -> tuple[int, str]:
        """Run the command; after `moment` seconds send a signal. Return the exit code and what it printed."""
        self._server.stdin.write(json.dumps([str(self._work), self._arguments]).encode() + b"\n")
        process = int(self._server.stdout.readline())
        if not self._answers(moment):
            with suppress(ProcessLookupError):  # it ends by itself at this moment
                os.kill(process, number)
            assert self._answers(PATIENCE), f"{self.command} hangs after signal {number}"
        return int(self._server.stdout.readline()), self._printed.read_text()

    def _answers(self, seconds: float) -> bool:
        return bool(select.select([self._server.stdout], [], [], seconds)[0])

    def _contents(self) -> dict[Path, bytes]:
        """The output's files, by their paths in it."""
        if not self._output.exists():
            return {}
        files = [self._output] if self._output.is_file() else sorted(self._output.rglob("*"))
        if self.command == "train":
            files = [path for path in files if path.name in COMPARED]
        return {path.relative_to(self._output): path.read_bytes() for path in files if path.is_file()}


def write_training(folder: Path, model: Path) -> None:
    """Write recordings, and the settings of a run that trains `model` on them, with dropout."""
    clips = folder / "clips"
    write_recordings(clips)
    settings = {"model": str(model), "data": str(clips / "train.jsonl"), "output": "run", "device": "cpu"}
    settings |= {"steps": 8, "max_rows": 160, "accumulate": 2, "dropout": 0.2, "learning_rate": 0.01}
    settings |= {"save_every": 2, "evaluate_every": 4, "speech_samples": 0}
    (folder / "train.yaml").write_text(json.dumps(settings))  # JSON is YAML, too


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=60, help="of each command and signal")
    parser.add_argument("--command", choices=COMMANDS, action="append", help="default: all")
    parser.add_argument("--signal", choices=[number.name for number in SIGNALS], action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw, failed = random.Random(options.seed), 0
    signals = [number for number in SIGNALS if number.name in (options.signal or number.name)]
    for command in options.command or COMMANDS:
        with tempfile.TemporaryDirectory() as folder, Interruption(command, Path(folder)) as interruption:
            for number in signals:
                for _ in range(options.moments):
                    moment = draw.uniform(0, interruption.seconds)
                    problems = interruption.problems(number, moment)
                    failed += bool(problems)
                    for problem in problems:
                        print(f"{command}, {number.name} after {moment:.3f} s: {problem}", flush=True)
                seconds = f"{interruption.seconds:.2f} s"
                print(f"{command}, {number.name}: {options.moments} moments in {seconds}", flush=True)
    sys.exit(f"{failed} failed" if failed else 0)


if __name__ == "__main__":
    main()
