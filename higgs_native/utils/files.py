"""Files and folders that appear whole or not at all."""

import errno
import fcntl
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from higgs_native.errors import ConfigError, ParameterError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, for a file or a folder, renamed to it at the end, or removed where writing
    fails.

    What processes left that were killed while they wrote to `path` is removed.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.split(".")[-2]
        # In containers, the process that was killed often had the id that this one has.
        if process.isdecimal() and (int(process) == os.getpid() or not _is_running(int(process))):
            _remove(leftover)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        _remove(temporary)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder alone, among the processes that ask for it. The lock ends with the process, however that ends.

    Raises:
        ParameterError: another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise ParameterError(
                    f"the folder {folder} is in use by another run; expected that to be over, or another folder"
                ) from None
            # Some network file systems have no locks.
        yield
    finally:
        os.close(descriptor)


def check_file_can_be_made(path: Path) -> None:
    """Raise ParameterError where `path` is a folder, or its folder can't be written to; a file there is left alone."""
    # Only trying tells whether a file can be made: permissions don't bind every user, and disks may be read-only.
    try:
        if path.is_dir():
            raise ParameterError(f"{path} is a folder; expected a file")
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ParameterError(f"{path} can't be written: {error.strerror}") from None


def _remove(path: Path) -> None:
    """Delete a file or a folder, as far as there is one and its owner allows it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError, PermissionError):
            path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's, or no process's id at all
    return True


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`.

    Raises:
        ConfigError: the file is missing or holds no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} has no {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a JSON {type(raw).__name__}; expected an object")
    return raw
