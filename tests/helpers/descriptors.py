"""The descriptors that a process holds."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def _open_descriptors() -> dict[int, str]:
    """Return what each descriptor refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@contextmanager
def no_descriptor_stays() -> Iterator[None]:
    """Fail if a descriptor is opened and stays open. Those of earlier tests may be closed meanwhile."""
    gc.collect()
    before = _open_descriptors()
    yield
    gc.collect()
    stayed = {number: name for number, name in _open_descriptors().items() if before.get(number) != name}
    assert not stayed, f"descriptors stay open: {stayed}"
