"""Lets tests import each other's helpers (`from tests import ...`)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


# Last: an installed higgs_native is tested, not the sources beside the tests, which hold no compiled operators.
sys.path.append(str(Path(__file__).resolve().parent.parent))


@pytest.fixture
def run_python(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a program (`python -c`) with arguments and environment variables, with the package that is tested."""
    import higgs_native

    def run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        package = str(Path(higgs_native.__file__).parent.parent)
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            # Elsewhere: a program finds what lies in its folder before what is installed.
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": package, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
