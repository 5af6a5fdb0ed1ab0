"""Files and folders: written whole or not at all, locked, checked, and read as JSON."""

import errno
import glob
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from higgs_native.errors import ConfigError, ParameterError


MAX_SMALL_FILE = 16 << 20
"""Maximum size of a configuration or an index, in bytes."""

# O_NONBLOCK: opening a named pipe would wait for its writer. O_BINARY: Windows would change line ends.
READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open` for the contents of a file, which may turn out to be a pipe."""


# Temporary paths that this process writes.
_being_written: set[Path] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or a folder: renamed to `path` at the end, removed on an error.

    If `path` is a link, the file that it names is replaced. A file gets the permissions of the one that it replaces,
    and nobody else can read it before. Removes the temporary files of processes that were killed while they wrote.
    """
    path = _behind_links(path)
    _remove_leftovers(path)
    temporary = _temporary(path)
    _being_written.add(temporary)
    try:
        mode = stat.S_IMODE(path.stat().st_mode) & 0o777 if path.is_file() else None
        if mode is not None:
            _create(temporary)
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        _remove(temporary)
        _being_written.discard(temporary)


def remove_temporary_files() -> None:
    """Remove what `replacing` has yielded and not renamed yet, for a process that ends without exceptions."""
    for temporary in list(_being_written):
        _remove(temporary)


@contextmanager
def locked(folder: Path, waits: bool = False) -> Iterator[None]:
    """Lock a folder against others that lock it. The lock ends with the process, even if it is killed.

    Args:
        folder: an existing one.
        waits: wait until the folder is free.

    Raises:
        ParameterError: another holds the lock.
    """
    if sys.platform == "win32":  # which locks files alone
        from filelock import FileLock, Timeout

        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=-1 if waits else 0)
        except Timeout:
            raise _in_use(folder) from None
        try:
            yield
        finally:
            lock.release()
        return

    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise _in_use(folder) from None
            # Other errors: some network file systems have no locks.
        yield
    finally:
        os.close(descriptor)


def _in_use(folder: Path) -> ParameterError:
    return ParameterError(f"folder must be free, got {folder}, which is in use by another run")


def check_file_can_be_made(path: Path) -> None:
    """Raise ParameterError unless `path` is a file that can be replaced, or can become one. Changes nothing."""
    try:
        target = _behind_links(path)
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "a pipe or a device"
            raise ParameterError(f"path must be a file, got {path}, which is {kind}")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        # Creating a file is the only reliable check: permissions don't bind every user, and disks may be read-only.
        _remove_leftovers(target)
        probe = _temporary(target)
        _create(probe)
        probe.unlink()
    except OSError as error:
        raise ParameterError(f"{path} can't be written: {error.strerror}") from None


def _behind_links(path: Path) -> Path:
    """Return the path of the file that a link names, which need not exist; any other path as it is."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # links in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _create(path: Path) -> None:
    """Create a file that only its owner can read. Raises FileExistsError rather than follow a link."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left beside `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.split(".")[-2]
        if not process.isdecimal():
            continue
        # In containers a killed process often had this process's id.
        is_own = int(process) == os.getpid() and leftover not in _being_written
        if is_own or not _is_running(int(process)):
            _remove(leftover)


def _remove(path: Path) -> None:
    """Delete a file or a folder, if it exists and permissions allow it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError, PermissionError):
            path.unlink()


def _is_running(process: int) -> bool:
    if sys.platform == "win32":
        return True  # unknown: `os.kill` would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's process, or no process id at all
    return True


def read_small_file(path: str | os.PathLike, max_bytes: int = MAX_SMALL_FILE) -> bytes:
    """Read a regular file of at most `max_bytes`. A pipe or a device, which may never end, is not read.

    Raises:
        OSError: there is no such file, it can't be read, is not regular, or is larger.
    """
    descriptor = os.open(path, READING)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            contents = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(contents) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes")
    return contents


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`, a regular file of at most `MAX_SMALL_FILE` bytes.

    Raises:
        ConfigError: the file is missing or holds no JSON object.
    """
    try:
        raw = json.loads(read_small_file(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    # RecursionError: deep nesting. ValueError: no UTF-8, no JSON, or an integer of over 4,300 digits.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a JSON object, got a {type(raw).__name__}")
    return raw
