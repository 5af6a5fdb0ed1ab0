"""Commands that a signal ends at random moments, imports and exit included.

By hand, from the root of the repository: python -m tests.helpers.interruptions --moments 60
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import higgs_native
from higgs_native.testing.random_checkpoint import write_demo_checkpoint


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
COMMANDS = ("speak", "read", "stream", "quantize")
TEXT = "The sun rises in the east. The water is cold.\n\nGood morning, she said."
PATIENCE = 300
"""Seconds after which a command counts as hung."""
EARLIEST = 0.1
"""Seconds. Before, Python itself starts, and shows a traceback for SIGINT."""


class Interruption:
    """A command and its complete output.

    Args:
        command: one of `COMMANDS`.
        folder: an existing, empty folder.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self.command = command
        self._folder = folder
        model = folder / "model"
        write_demo_checkpoint(model)
        options = ["--model", str(model), "--seed", "1", "--max-new-tokens", "40"]
        self._arguments, output = {
            "speak": (["speak", TEXT, *options, "--out", "out.wav"], "out.wav"),
            "read": (["read", TEXT, "--seed", "1", "--out", "out.wav"], "out.wav"),
            "stream": (["speak", TEXT, *options, "--stream", "out.pcm"], "out.pcm"),
            "quantize": (["quantize", str(model), "out"], "out"),
        }[command]
        self._work = folder / "work"
        self._work.mkdir()
        self._output = self._work / output
        start = time.monotonic()
        code, errors = self._finish(self._start())
        assert code == 0, errors
        self.seconds = time.monotonic() - start
        self._expected = self._contents()
        self._names = os.listdir(self._work)

    def problems(self, number: signal.Signals, moment: float) -> list[str]:
        """Interrupt the command `moment` seconds after its start, then run it again; return what is wrong."""
        problems = []
        # Old output, which the command replaces; quantize demands that there is none.
        shutil.rmtree(self._work)
        self._work.mkdir()
        if self.command != "quantize":
            self._output.write_bytes(b"old")
        process = self._start()
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        code, errors = self._finish(process)
        if code not in (-number, 128 + number, 0):
            problems.append(f"exit code {code}: {errors}")
        if "Traceback" in errors or "Exception" in errors:
            problems.append(f"a traceback: {errors}")
        contents = self._contents()
        whole = contents in (self._expected, {Path(): b"old"}, {})
        if not whole and self.command != "stream":
            problems.append("half-written output")
        if self.command == "quantize" and contents:
            shutil.rmtree(self._output)
        code, errors = self._finish(self._start())
        if code != 0:
            problems.append(f"the next run fails with exit code {code}: {errors}")
        if self._contents() != self._expected:
            problems.append("the next run writes something else")
        if os.listdir(self._work) != self._names:
            problems.append(f"the next run leaves {os.listdir(self._work)}")
        return problems

    def _start(self) -> subprocess.Popen:
        program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        program += "from higgs_native_command import main; main()"
        package = str(Path(higgs_native.__file__).parent.parent)
        return subprocess.Popen(
            [sys.executable, "-c", program, *self._arguments],
            cwd=self._work,
            env={**os.environ, "PYTHONPATH": package, "XDG_CACHE_HOME": str(self._folder / "cache")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _finish(self, process: subprocess.Popen) -> tuple[int, str]:
        _, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, errors

    def _contents(self) -> dict[Path, bytes]:
        """The output's files, by their paths in it."""
        if not self._output.exists():
            return {}
        files = [self._output] if self._output.is_file() else sorted(self._output.rglob("*"))
        return {path.relative_to(self._output): path.read_bytes() for path in files if path.is_file()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=60, help="of each command and signal")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    draw, failed = random.Random(options.seed), 0
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            interruption = Interruption(command, Path(folder))
            for number in SIGNALS:
                for _ in range(options.moments):
                    moment = draw.uniform(EARLIEST, interruption.seconds)
                    problems = interruption.problems(number, moment)
                    failed += bool(problems)
                    for problem in problems:
                        print(f"{command}, {number.name} after {moment:.3f} s: {problem}", flush=True)
                seconds = f"{interruption.seconds:.2f} s"
                print(f"{command}, {number.name}: {options.moments} moments in {seconds}", flush=True)
    sys.exit(f"{failed} failed" if failed else 0)


if __name__ == "__main__":
    main()
