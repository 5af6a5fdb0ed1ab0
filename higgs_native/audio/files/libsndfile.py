"""libsndfile, safe against exceptions at any time, such as those of signal handlers.

libsndfile accesses Python's file objects through callbacks. An exception in a callback is printed and dropped, so that
damaged audio seems complete. With a file descriptor, no Python code runs inside the library.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import soundfile


_BLOCK_VALUES = 1 << 20  # read at a time, which bounds the memory


@contextmanager
def memory_file(contents: bytes = b"") -> Iterator[int]:
    """Yield the descriptor of a file in memory that holds `contents`, positioned at its beginning."""
    descriptor = os.memfd_create("audio")
    try:
        rest = memoryview(contents)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


class SoundFile(soundfile.SoundFile):
    """A SoundFile that closes the library's file at most once.

    An exception can end `__init__` or `close` right after the library's call. The destructor of the base class would
    then close a handle that was never stored, or is freed already.
    """

    _is_open = False

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
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
