"""Fixtures of all tests. The repository goes on the path, for imports of `tests` and `benchmarks`."""

import inspect
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


# Last, so that plain `pytest` tests an installed higgs_native, not the sources in the repository.
sys.path.append(str(Path(__file__).resolve().parent.parent))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed each test, so that it draws the same numbers whichever tests ran before it in its process."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (packages draw from it)
    torch.manual_seed(0)


@pytest.fixture
def run_python(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a program (`python -c`) with the tested package; keywords are environment variables."""
    import higgs_native

    def run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        package = str(Path(higgs_native.__file__).parent.parent)
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            # Python imports from the current folder before installed packages.
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": package, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def on_other_backend(run_python, tmp_path) -> Callable[..., Any]:
    """Runs `function(*arguments, device=...)` on the other backend: a GPU, or the emulation in another process.

    If this process emulates CUDA, the other one has the CPU kernels. The function is sent as source code, so it must
    import what it needs.
    """
    import torch

    from higgs_native import _C
    from higgs_native.ops._library import EMULATES_CUDA

    emulation = Path(_C.__file__).parent / "libhiggs_native_cuda_emulation.so"
    if not torch.cuda.is_available() and not emulation.is_file():
        pytest.skip("needs a CUDA device, or a build with the emulation of CUDA")

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        if torch.cuda.is_available():
            return function(*arguments, device="cuda")
        program = (
            "import sys, torch\n"
            f"{inspect.getsource(function)}\n"
            f"result = {function.__name__}(*torch.load(sys.argv[1]), device='cpu')\n"
            "torch.save(result, sys.argv[2])\n"
        )
        inputs, result = tmp_path / "inputs", tmp_path / "result"
        torch.save(arguments, inputs)
        finished = run_python(
            program, str(inputs), str(result), HIGGS_NATIVE_EMULATE_CUDA="0" if EMULATES_CUDA else "1"
        )
        assert finished.returncode == 0, finished.stderr
        return torch.load(result)

    return run


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory) -> Path:
    """A small checkpoint with an audio tokenizer, of random weights."""
    from higgs_native.testing.random_checkpoint import write_demo_checkpoint

    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A current folder for what cases write, so deep that no drawn path leads out of it; no Hub."""
    work = tmp_path / "a" / "b" / "c" / "d"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HIGGS_NATIVE_VOICES", raising=False)
    return work


@pytest.fixture(autouse=True)
def checks_values(request) -> None:
    """Skips tests of refused values on CUDA kernels, which can't refuse values; see tests/helpers/devices.py."""
    if request.node.get_closest_marker("checks_values"):
        from higgs_native.ops._library import EMULATES_CUDA

        parameters = getattr(request.node, "callspec", None)
        if EMULATES_CUDA or (parameters and parameters.params.get("device") == "cuda"):
            pytest.skip("the CUDA kernels can't refuse values")


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints the summary of each file of generated cases; see tests/fuzz."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, line in report.user_properties if report.when == "call" else ():
            if name == "fuzz":
                terminalreporter.write_line(line)
