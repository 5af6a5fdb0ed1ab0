"""Standard streams and signals of the program."""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from higgs_native.errors import one_line
from higgs_native.utils.files import remove_temporary_files
from higgs_native.utils.progress import shows_notices


_advice = ""


def prepare_streams() -> None:
    """Let no closed standard stream, and no character that the terminal lacks, end the program."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file gets this number, and what libraries print.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write what standard output holds back. If that fails, Python does not try again at its end."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = None
        raise


_LOGGER = logging.getLogger("higgs_native")


@contextmanager
def showing_logs() -> Iterator[None]:
    """Print what the package logs on standard error; `set_verbosity` chooses what."""
    handler = logging.StreamHandler(sys.stderr)
    _LOGGER.addHandler(handler)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(logging.NOTSET)


def set_verbosity(verbosity: int) -> None:
    """Show errors alone (-1), also warnings, notices and bars (0), what is loaded (1), or details (2 and more)."""
    _LOGGER.setLevel({-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))


def notice(text: str) -> None:
    """Print a line on standard error, if it is wanted and can be written to: nothing depends on it."""
    if shows_notices():
        with suppress(OSError):
            print(one_line(text), file=sys.stderr)


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP remove half-written files, and end the program with the exit code of the signal."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may set a handler
        numbers = [signal.SIGINT, signal.SIGTERM]
        if sys.platform != "win32":
            numbers.append(signal.SIGHUP)
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:  # as in a background job, or under nohup
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def advising(text: str) -> Iterator[None]:
    """Let a signal print a last line, which says how to go on, on standard error."""
    global _advice
    before, _advice = _advice, text
    try:
        yield
    finally:
        _advice = before


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # Not by an exception, which a destructor or a library's callback would print and drop.
    try:
        remove_temporary_files()
        if os.isatty(2):
            os.write(2, b"\n")  # after a progress bar
        if _advice:
            os.write(2, (one_line(_advice) + "\n").encode(errors="backslashreplace"))
    finally:
        os._exit(128 + number)
