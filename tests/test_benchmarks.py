"""The command line of the benchmarks."""

import os
import subprocess
import sys
from pathlib import Path

import higgs_native


def test_a_wrong_model_fails_before_anything_is_measured():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--no-transformers", "--model", "nonexist"],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(higgs_native.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    message = "error: model must be a folder or a Hub name such as owner/name, got nonexist, which does not exist\n"
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", message)
