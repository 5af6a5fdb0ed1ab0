import os
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest

from higgs_native.errors import ConfigError, ParameterError
from higgs_native.utils.files import (
    MAX_SMALL_FILE,
    check_file_can_be_made,
    locked,
    read_json_object,
    read_small_file,
    remove_temporary_files,
    replacing,
)
from tests.helpers.descriptors import no_descriptor_stays


NO_PROCESS = 1 << 22
"""The first id that Linux gives to no process."""


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
    parent = os.getppid()  # runs, and may be writing
    path = tmp_path / "a[1]"
    for name in (f".a[1].{NO_PROCESS}.tmp", f".a[1].{parent}.tmp", f".a1.{NO_PROCESS}.tmp", ".a[1].x.tmp"):
        (tmp_path / name).touch()
    write(path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "a[1]",
        f".a[1].{parent}.tmp",
        f".a1.{NO_PROCESS}.tmp",
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
    for process in (NO_PROCESS, os.getpid()):  # in containers, the killed one and this one may have the same id
        (tmp_path / f".folder.{process}.tmp" / "inside").mkdir(parents=True)

    def fail_in_a_folder():
        with replacing(tmp_path / "folder") as temporary:
            (temporary / "inside").mkdir(parents=True)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_in_a_folder()
    assert list(tmp_path.iterdir()) == []


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o644, 0o666, 0o700, 0o444])
def test_a_file_keeps_its_permissions(bits, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(bits)
    with umask(0o022), replacing(path) as temporary:
        temporary.write_text("new")
        assert mode(temporary) == 0o600
    assert (path.read_text(), mode(path)) == ("new", bits)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_file_has_the_permissions_of_the_umask(mask, tmp_path):
    with umask(mask):
        write(tmp_path / "file")
    assert mode(tmp_path / "file") == 0o666 & ~mask


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_written_through(exists, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link, second = tmp_path / "elsewhere" / "file", tmp_path / "link", tmp_path / "second"
    if exists:
        target.write_text("old")
    link.symlink_to("elsewhere/file")
    second.symlink_to("link")
    check_file_can_be_made(second)
    write(second)
    assert os.readlink(link) == "elsewhere/file"
    assert os.readlink(second) == "link"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ParameterError, match=r"a can't be written: "):
        check_file_can_be_made(tmp_path / "a")


def test_what_looks_like_a_temporary_file_is_the_user_s(tmp_path):
    """Other files are neither deleted nor followed, and a link with a name of ours is not followed."""
    secret = tmp_path / "secret"
    secret.write_text("kept")
    for name in (".file.probe", ".file.tmp", ".file.1x.tmp", "file.tmp"):
        (tmp_path / name).symlink_to("secret")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to("secret")
    check_file_can_be_made(tmp_path / "file")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to("secret")
    write(tmp_path / "file")
    assert secret.read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == [".file.1x.tmp", ".file.probe", ".file.tmp", "file", "file.tmp", "secret"]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "a folder"),
        (os.mkfifo, "a pipe or a device"),
        (lambda path: path.symlink_to(os.devnull), "a pipe or a device"),
    ],
)
def test_what_is_no_file_is_not_replaced(make, kind, tmp_path):
    make(tmp_path / "x")
    with pytest.raises(ParameterError, match=rf"path must be a file, got .*x, which is {kind}"):
        check_file_can_be_made(tmp_path / "x")


def test_a_process_that_ends_at_once_can_remove_what_it_wrote(tmp_path):
    with replacing(tmp_path / "one") as file, replacing(tmp_path / "two") as folder:
        file.touch()
        (folder / "inside").mkdir(parents=True)
        remove_temporary_files()
        assert list(tmp_path.iterdir()) == []
        file.touch()
        folder.mkdir()
    remove_temporary_files()
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


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


def test_a_small_file_is_read_whole(tmp_path):
    path = tmp_path / "file"
    for contents in (b"", b"\0text", bytes(MAX_SMALL_FILE)):
        path.write_bytes(contents)
        assert read_small_file(path) == contents
    with pytest.raises(OSError, match="it is larger than 9 bytes"):
        read_small_file(path, 9)


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, "No such file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.write_bytes(bytes(MAX_SMALL_FILE + 1)), "larger than 16777216 bytes"),
        (make_sparse, "larger than 16777216 bytes"),
    ],
    ids=["missing", "pipe", "device", "folder", "large", "sparse"],
)
def test_what_may_never_end_is_not_read(make, error, tmp_path):
    make(tmp_path / "file.json")
    reason = r"has no file\.json" if error == "No such file" else f"can't be read: .*{error}"
    with no_descriptor_stays():
        with pytest.raises(OSError, match=error):
            read_small_file(tmp_path / "file.json")
        with pytest.raises(ConfigError, match=reason):
            read_json_object(tmp_path / "file.json")


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "file").write_text('{"name": "Änne"}', encoding="utf-8-sig")
    assert read_json_object(tmp_path / "file") == {"name": "Änne"}


@pytest.mark.parametrize("contents", [b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"\xff", b"", b"{"])
def test_what_is_no_json_is_refused(contents, tmp_path):
    (tmp_path / "file").write_bytes(contents)
    with pytest.raises(ConfigError, match="file is not readable as JSON: "):
        read_json_object(tmp_path / "file")
