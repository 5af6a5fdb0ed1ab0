"""The handle of a request: its frames and tokens as they are drawn, its output, and the way to abort it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future

import torch

from higgs_native.generation.driver import Driver
from higgs_native.generation.requests import GenerationOutput
from higgs_native.generation.sequence import Row, SequenceState
from higgs_native.utils.uncopyable import Uncopyable


class RequestHandle(Uncopyable):
    """A request that an engine generates; what `Engine.add` returns.

    It is iterated once, by `for` or by `async for`: over frames [codebooks], int64, still delayed, and text tokens,
    int, in the order in which they are drawn. Unless the engine has a thread, the iteration drives it. A loop that is
    left early aborts the request.

    Attributes:
        future: holds the `GenerationOutput` at the end, or the error that ended the request.
        added: when it was added, by the engine's clock.
        first_item_seconds: from `added` to the first frame or token; None before it.
        sequence: the state of the request.
        wake: called by the engine after a step that has drawn items of this request, and at its end; or None.
    """

    _instead = "; its items and its output may be"

    def __init__(
        self, driver: Driver, abort: Callable[["RequestHandle"], None], sequence: SequenceState, added: float
    ) -> None:
        self.future: Future[GenerationOutput] = Future()
        self.added = added
        self.first_item_seconds: float | None = None
        self.sequence = sequence
        self.wake: Callable[[], object] | None = None
        self._driver = driver
        self._abort = abort
        self._items: deque[Row] = deque()

    def __repr__(self) -> str:
        state = "done" if self.future.done() else "running" if self.sequence.slot >= 0 else "waiting"
        return f"<RequestHandle {state}, {self.sequence.steps} steps>"

    @property
    def num_items(self) -> int:
        """The number of items that can be taken."""
        return len(self._items)

    @property
    def is_ready(self) -> bool:
        """Whether items can be taken, or none will come."""
        return bool(self._items) or self.future.done()

    @property
    def is_exhausted(self) -> bool:
        """Whether all items are taken, and none will come."""
        return self.future.done() and not self._items

    def put(self, item: Row) -> None:
        """Hand over the next item (called by the engine)."""
        self._items.append(item)

    def take(self) -> list[torch.Tensor | int]:
        """Return the items drawn since the last call, without waiting."""
        items = []
        while self._items:
            items.append(self._items.popleft())
        # Ordinary tensors: one made in inference mode can't be changed outside it.
        with torch.inference_mode(False):
            return [
                item if isinstance(item, int) else torch.tensor(item, dtype=torch.int64, device="cpu")
                for item in items
            ]

    def result(self, timeout: float | None = None) -> GenerationOutput:
        """Wait for the end, and return the output.

        Args:
            timeout: in seconds; None waits without a limit. It counts only if the engine has a thread.

        Raises:
            TimeoutError: the request has not ended in time.
            Exception: the error that ended the request.
        """
        if not self._driver.has_thread:
            self._driver.drive(self.future.done)
        return self.future.result(timeout)

    def abort(self) -> None:
        """End the request at the next step; what it has drawn becomes its output, with the finish reason `aborted`."""
        self._abort(self)

    def __iter__(self) -> Iterator[torch.Tensor | int]:
        try:
            while True:
                self._driver.drive(lambda: self.is_ready)
                items = self.take()
                yield from items
                if not items:
                    self.future.result()  # raises the error that ended the request
                    return
        finally:
            self.abort()

    async def __aiter__(self) -> AsyncIterator[torch.Tensor | int]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:  # the event loop was closed inside the `async for`
                self.wake = None
                self.abort()

        self.wake = wake
        try:
            while True:
                ready.clear()
                if not self.is_ready:
                    if self._driver.has_thread:
                        await ready.wait()
                    else:
                        await asyncio.to_thread(self._driver.drive, lambda: self.is_ready)
                items = self.take()
                for item in items:
                    yield item
                if not items and self.future.done():
                    self.future.result()
                    return
        finally:
            self.wake = None
            self.abort()
