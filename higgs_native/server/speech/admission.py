"""Admission: the requests that are spoken now, those that wait, and those that are refused."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Refused(Exception):
    """A request that is not admitted.

    Attributes:
        is_draining: the server is about to end; otherwise its queue, or the share of the client's key, is full.
        retry_seconds: seconds after which another try makes sense.
    """

    def __init__(self, message: str, is_draining: bool, retry_seconds: int) -> None:
        super().__init__(message)
        self.is_draining = is_draining
        self.retry_seconds = retry_seconds


class Admission:
    """A bounded queue in front of a bounded number of running requests, first come, first served.

    All methods are called in the event loop.

    Args:
        max_running: requests that run at once.
        max_queued: requests that wait.
        max_per_key: running and waiting requests of a key; None: no limit.

    Attributes:
        running, queued: the number of requests that run, and that wait.
        is_draining: whether new requests are refused because the server is about to end.
    """

    def __init__(self, max_running: int, max_queued: int, max_per_key: int | None = None) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._max_per_key = max_per_key
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._per_key: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_seconds = 1.0
        self.running = 0
        self.is_draining = False

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self, key: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it; leaving frees it for the next request.

        Args:
            key: of the client.

        Raises:
            Refused: the server drains, the queue is full, or the key has too many requests.
        """
        self._check(key)
        loop = asyncio.get_running_loop()
        self._per_key[key] += 1
        try:
            await self._turn()
            began = loop.time()
            try:
                yield
            finally:
                # For the advice to refused clients; recent requests count most.
                self._mean_seconds += 0.1 * (loop.time() - began - self._mean_seconds)
                self._release()
        finally:
            self._per_key[key] -= 1
            if not self._per_key[key]:
                del self._per_key[key]

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests, and wait for those that run and wait, at most `seconds`. Return whether all ended."""
        self.is_draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    def _check(self, key: str) -> None:
        if self.is_draining:
            raise Refused("the server is shutting down and takes no new requests", True, 1)
        if self._max_per_key is not None and self._per_key[key] >= self._max_per_key:
            raise Refused(
                f"requests of one key at once must be at most {self._max_per_key}, got one more", False, self._retry(1)
            )
        if self.running >= self._max_running and self.queued >= self._max_queued:
            raise Refused(
                f"waiting requests must be at most {self._max_queued}, got one more", False, self._retry(self.queued)
            )

    def _retry(self, ahead: int) -> int:
        """Return roughly the seconds until `ahead` requests have had their turn."""
        return min(60, max(1, round(self._mean_seconds * ahead / self._max_running)))

    async def _turn(self) -> None:
        if self.running < self._max_running:
            self._start()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._release()  # its turn had come at the moment when the client left
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _start(self) -> None:
        self.running += 1
        self._idle.clear()

    def _release(self) -> None:
        self.running -= 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.cancelled():  # else its client has just left
                self._start()
                turn.set_result(None)
                return
        if not self.running:
            self._idle.set()
