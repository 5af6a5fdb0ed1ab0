import os
import subprocess
import sys

import pytest

from higgs_native.errors import ParameterError
from higgs_native.utils.files import locked, replacing


def write(path, text="new"):
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def fail_while_writing(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")


def test_nothing_stays_where_writing_fails(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        fail_while_writing(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    parent = os.getppid()  # runs, and may be writing
    path = tmp_path / "a[1]"
    for name in (f".a[1].{ended.pid}.tmp", f".a[1].{parent}.tmp", f".a1.{ended.pid}.tmp", ".a[1].x.tmp"):
        (tmp_path / name).touch()
    write(path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "a[1]",
        f".a[1].{parent}.tmp",
        f".a1.{ended.pid}.tmp",
        ".a[1].x.tmp",
    }


def test_a_folder_appears_at_the_end(tmp_path):
    path = tmp_path / "folder"
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("new")
        assert not path.exists()
    assert (path / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder_stays_where_writing_fails_or_was_killed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid()):  # in containers, the killed one and this one may have the same id
        (tmp_path / f".folder.{process}.tmp" / "inside").mkdir(parents=True)

    def fail_in_a_folder():
        with replacing(tmp_path / "folder") as temporary:
            (temporary / "inside").mkdir(parents=True)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_in_a_folder()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_locked_for_one_process(tmp_path, run_python):
    ask = "import sys, pathlib, higgs_native.utils.files as f\nwith f.locked(pathlib.Path(sys.argv[1])): pass"
    with locked(tmp_path):
        assert "is in use by another run" in run_python(ask, tmp_path).stderr
        with (
            pytest.raises(ParameterError, match=r"folder must be free, got .*, which is in use by another run"),
            locked(tmp_path),
        ):
            pass
    assert run_python(ask, tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []
