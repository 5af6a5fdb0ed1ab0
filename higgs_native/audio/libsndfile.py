"""libsndfile, used so that an exception may come at any time, as one does that a signal's handler raises.

libsndfile also reads and writes Python's file objects, through callbacks. An exception in a callback is printed and
dropped, and damaged audio passes for whole. With a descriptor, no Python code runs inside the library.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import soundfile


@contextmanager
def memory_file(contents: bytes = b"") -> Iterator[int]:
    """Give the descriptor of a file in memory that holds `contents`, positioned at its beginning."""
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

    An exception may end `__init__` or `close` right after the library's part of it. The base class, deleted, would
    then close what was never stored, or what is freed already.
    """

    _is_open = False

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            super().close()
