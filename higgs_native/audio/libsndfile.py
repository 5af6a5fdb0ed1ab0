"""libsndfile, safe against exceptions at any time, such as those of signal handlers.

libsndfile accesses Python's file objects through callbacks. An exception in a callback is printed and dropped, so that
damaged audio seems complete. With a file descriptor, no Python code runs inside the library.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import soundfile


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
