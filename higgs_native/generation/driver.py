"""The driver: computes an engine's steps in the threads of its callers, in turn, or in a background thread."""

import atexit
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable

from higgs_native.errors import GenerationError, ParameterError


class Driver(ABC):
    """Computes steps while a caller waits for their results. Thread-safe.

    One caller at a time has the turn: it computes steps for all, and the others wait. `start` begins a thread that has
    the turn instead.
    """

    def __init__(self) -> None:
        self._turn_lock = threading.Lock()
        self._is_driven = False
        self._waiters: list[tuple[Callable[[], bool], threading.Event]] = []
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._stops = False

    @abstractmethod
    def step(self) -> bool:
        """Compute one step; return whether work is left."""

    @abstractmethod
    def end_turn(self) -> None:
        """Called after each turn."""

    @property
    def has_thread(self) -> bool:
        """Whether a thread computes the steps."""
        return self._thread is not None

    def notify(self) -> None:
        """Tell the thread that there is work."""
        self._work.set()

    def drive(self, ready: Callable[[], bool]) -> None:
        """Compute steps until `ready()` is true, or wait while another caller or the thread computes them.

        Raises:
            GenerationError: no work is left that could make it true.
        """
        while not ready():
            turn = self._claim_turn(ready)
            if turn is not None:
                turn.wait()
                continue
            try:
                while not ready():
                    if not self.step() and not ready():
                        raise GenerationError("no request is left to wait for")
                    self._wake_waiters()
            finally:
                self._pass_turn()

    def start(self) -> None:
        """Begin a thread that computes steps until `stop`.

        Raises:
            ParameterError: the thread has begun already.
        """
        if self._thread is not None:
            raise ParameterError("the engine must be stopped before it is started again")
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="higgs-native-engine", daemon=True)
        _started.add(self)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its step. Callers then compute the steps that are left."""
        if self._thread is not None:
            self._stops = True
            self._work.set()
            self._wake_waiters()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        """Wait for the turn, then compute all steps until `stop`."""
        while (turn := self._claim_turn(lambda: self._stops)) is not None:
            turn.wait()
            if self._stops:
                return
        try:
            while not self._stops:
                self._work.clear()
                if self.step():
                    self._work.set()
                self._wake_waiters()
                self._work.wait()
        finally:
            self._pass_turn()

    def _claim_turn(self, ready: Callable[[], bool]) -> threading.Event | None:
        """Take the turn and return None, or return an event: once set, `ready()` is true or the turn is free."""
        with self._turn_lock:
            if not self._is_driven:
                self._is_driven = True
                return None
            event = threading.Event()
            if ready():
                event.set()
            else:
                self._waiters.append((ready, event))
            return event

    def _pass_turn(self) -> None:
        """Give the turn up."""
        with self._turn_lock:
            self._is_driven = False
        self._wake_waiters(passes_turn=True)
        self.end_turn()

    def _wake_waiters(self, passes_turn: bool = False) -> None:
        """Wake the waiters that are ready, and with `passes_turn` one more, to take the turn."""
        if not self._waiters:
            return
        with self._turn_lock:
            waiters, self._waiters = self._waiters, []
            for ready, event in waiters:
                if ready():
                    event.set()
                elif passes_turn:
                    passes_turn = False
                    event.set()
                else:
                    self._waiters.append((ready, event))


# Drivers whose thread may still run.
_started: "weakref.WeakSet[Driver]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """End all threads before the interpreter exits: a thread inside torch would abort the process."""
    for driver in list(_started):
        driver.stop()
