"""The command in this process, and what it reads."""

import numpy as np
import pytest

from higgs_native.cli import main
from higgs_native.testing.random_checkpoint import write_demo_checkpoint


RATE = 24000


@pytest.fixture(scope="package")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_checkpoint(folder)
    return folder


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs the command in an empty folder; returns its exit code, standard output and standard error."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HIGGS_NATIVE_VOICES", raising=False)
    monkeypatch.delenv("HIGGS_NATIVE_TRACEBACK", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    run.work = work
    return run


def tone(seconds):
    return (0.5 * np.sin(2 * np.pi * 220 / RATE * np.arange(round(RATE * seconds)))).astype(np.float32)
