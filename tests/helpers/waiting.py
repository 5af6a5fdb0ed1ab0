"""Waiting for another thread or process, however slow the machine is."""

import time
from collections.abc import Callable
from threading import Thread


PATIENCE = 300.0
"""Seconds after which a test hangs. It ends a hang and decides nothing else: what works takes a small part of it."""


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def join(thread: Thread) -> None:
    """Wait until a thread has ended."""
    thread.join(PATIENCE)
    assert not thread.is_alive(), f"the thread {thread.name} hangs"
