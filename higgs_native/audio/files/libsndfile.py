"""libsndfile, safe against exceptions at any time, such as those of signal handlers.

libsndfile accesses Python's file objects through callbacks. An exception in a callback is printed and dropped, so that
damaged audio seems complete. With a file descriptor, no Python code runs inside the library.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import soundfile


_BLOCK_VALUES = 1 << 20  # read at a time, which bounds the memory


@contextmanager
def memory_file(contents: bytes = b"") -> Iterator[int]:
    """Yield the descriptor of a file that holds `contents`, positioned at its beginning: in memory on Linux."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("audio")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        rest = memoryview(contents)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def read_at(descriptor: int, count: int, position: int) -> bytes:
    """As `os.pread`, which Windows lacks."""
    if sys.platform != "win32":
        return os.pread(descriptor, count, position)
    with _positioned(descriptor, position):
        return os.read(descriptor, count)


def write_at(descriptor: int, data: bytes, position: int) -> int:
    """As `os.pwrite`, which Windows lacks."""
    if sys.platform != "win32":
        return os.pwrite(descriptor, data, position)
    with _positioned(descriptor, position):
        return os.write(descriptor, data)


@contextmanager
def _positioned(descriptor: int, position: int) -> Iterator[None]:
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, position, os.SEEK_SET)
    try:
        yield
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


class SoundFile(soundfile.SoundFile):
    """A SoundFile that closes the library's file at most once.

    An exception can end `__init__` or `close` right after the library's call. The destructor of the base class would
    then close a handle that was never stored, or is freed already.
    """

    _is_open = False

    def __init__(self, file: int | bytes, mode: str = "r", *arguments, **options) -> None:
        opened: int | bytes | BinaryIO = file
        if sys.platform == "win32" and isinstance(file, int):
            # The library has another C runtime there, which does not know the descriptor.
            opened = os.fdopen(file, "rb" if mode == "r" else "r+b", buffering=0, closefd=False)
        super().__init__(opened, mode, *arguments, **options)
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            super().close()


class SequentialReader(SoundFile):
    """A file that is read from its beginning, or from where `seek` led, to its end."""

    def seekable(self) -> bool:
        """False, so that the base class does not seek after each read, which fails if the length is unknown."""
        return False

    def mono_blocks(self, count: int = sys.maxsize) -> Iterator[np.ndarray]:
        """Read at most `count` frames, in blocks [samples], float32, with the channels averaged."""
        size = _BLOCK_VALUES // self.channels
        while count > 0 and len(frames := self.read(min(count, size), dtype="float32", always_2d=True)):
            count -= len(frames)
            with np.errstate(all="ignore"):  # infinite samples are for the caller to refuse
                mono = frames.mean(axis=1)
            yield mono
