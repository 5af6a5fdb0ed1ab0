"""A check that a thread makes while what it checks is used already."""

import atexit
import threading
import weakref
from collections.abc import Callable

from higgs_native.errors import HiggsNativeError


class _Stopped(Exception):
    """Ends a check that nobody needs any more."""


class BackgroundCheck:
    """A function that runs in its own thread, and the error that it found.

    An interpreter that exits ends it; a forked process does not go on with it.

    Args:
        check: called in the thread with a function that it calls several times a second, which ends it by an error.
    """

    def __init__(self, check: Callable[[Callable[[], None]], None]) -> None:
        self._error: Exception | None = None
        self._is_stopped = False
        # A daemon: an interpreter that exits must reach _stop_all, which ends the thread.
        self._thread = threading.Thread(target=self._run, args=(check,), name="higgs-native-check", daemon=True)
        _started.add(self)
        self._thread.start()

    def raise_error(self) -> None:
        """Raise the error that the check has found so far."""
        if isinstance(self._error, HiggsNativeError):
            raise type(self._error)(str(self._error))  # a new error, with its own traceback
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait for the end of the check, and raise the error that it has found."""
        self._thread.join()
        self.raise_error()

    def stop(self) -> None:
        """End the check, and wait for its end."""
        self._is_stopped = True
        self._thread.join()

    def _run(self, check: Callable[[Callable[[], None]], None]) -> None:
        try:
            check(self._go_on)
        except _Stopped:
            return
        except Exception as error:
            self._error = error

    def _go_on(self) -> None:
        if self._is_stopped:
            raise _Stopped


_started: "weakref.WeakSet[BackgroundCheck]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """End all threads before the interpreter exits: a thread inside torch would abort the process."""
    for check in list(_started):
        check.stop()
