"""Iteration over items that a thread produces. The thread waits for a slow consumer, and ends with the loop."""

import asyncio
import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Generic, TypeVar

from higgs_native.errors import ParameterError
from higgs_native.utils.uncopyable import Uncopyable


T = TypeVar("T")


class ConsumerLeft(Exception):
    """Ends the producing function after the consumer has left the loop."""


class BackgroundIterator(Uncopyable, Generic[T]):
    """Items that a function produces in its own thread, iterated once, by `for` or by `async for`.

    The thread begins with the iteration, and its errors are raised in the loop. A second iteration, or one after
    `close`, raises ParameterError. Leaving the loop, or `close`, ends the
    thread: its next call of `put` or `check` raises ConsumerLeft. The loop is left after the thread has ended.

    Args:
        make: called in the thread with this object, to `put` items; it calls `check` if it puts none for long.
        capacity: items that may wait for the consumer; `put` waits for room.
    """

    _instead = "; its items may be"

    def __init__(self, make: Callable[["BackgroundIterator[T]"], None], capacity: int) -> None:
        self.waited = 0.0
        """Seconds that `put` has waited for the consumer."""
        self._make = make
        self._capacity = capacity
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._left = False  # the consumer has left
        self._ended = False  # the thread has ended
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._wake: Callable[[], object] = lambda: None

    def put(self, item: T) -> None:
        """Hand over an item (called in the thread).

        Raises:
            ConsumerLeft: the consumer has left.
        """
        start = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._left or len(self._items) < self._capacity)
            self.waited += time.perf_counter() - start
            self.check()
            self._items.append(item)
            self._notify()

    @property
    def consumer_left(self) -> bool:
        """Whether the consumer has left, so that nothing more is needed."""
        return self._left

    def check(self) -> None:
        """Raise ConsumerLeft if the consumer has left (called in the thread)."""
        if self._left:
            raise ConsumerLeft

    def close(self) -> None:
        """End the thread and wait for its end; items that were not taken are lost."""
        self._leave()
        if self._thread is not None:
            self._thread.join()

    def __iter__(self) -> Iterator[T]:
        self._start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._items or self._ended)
                    if not self._items:
                        break
                    item = self._take()
                yield item
            self._raise_error()
        finally:
            self.close()

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        self._start(lambda: loop.call_soon_threadsafe(changed.set))
        try:
            while True:
                changed.clear()
                with self._changed:
                    item = [self._take()] if self._items else []
                    ended = self._ended
                if item:
                    yield item[0]
                elif ended:
                    break
                else:
                    await changed.wait()
            self._raise_error()
        finally:
            self._leave()
            cancelled = False
            while not self._ended:
                changed.clear()
                if not self._ended:
                    try:
                        await changed.wait()
                    except asyncio.CancelledError:  # maybe for the second time: the thread must end first
                        cancelled = True
            if self._thread is not None:
                self._thread.join()
            if cancelled:
                raise asyncio.CancelledError

    def _start(self, wake: Callable[[], object] = lambda: None) -> None:
        """Start the thread, which calls `wake` after every item and at the end."""
        with self._changed:
            if self._thread is not None or self._left:
                raise ParameterError(f"a {type(self).__name__} must be iterated once, and not after close")
            self._wake = wake
            # A daemon: an interpreter that exits inside the loop must reach _close_all, which ends the thread.
            self._thread = threading.Thread(target=self._run, name="higgs-native", daemon=True)
            _started.add(self)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._make(self)
        except ConsumerLeft:
            self._items.clear()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._notify()

    def _take(self) -> T:
        item = self._items.popleft()
        self._changed.notify_all()
        return item

    def _leave(self) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # The traceback refers to this frame: with the name, the error would live until garbage collection.
            del error

    def _notify(self) -> None:
        self._changed.notify_all()
        try:
            self._wake()
        except RuntimeError:  # the event loop was closed inside the `async for`
            self._left = True


# Iterators whose thread may still run. Weak references: an unreferenced iterator closes itself.
_started: "weakref.WeakSet[BackgroundIterator]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End all threads before the interpreter exits: a thread inside torch would abort the process."""
    for background in list(_started):
        background.close()
