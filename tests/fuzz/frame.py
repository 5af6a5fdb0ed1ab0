"""Runs generated cases, and judges how each one ends; see `tests/fuzz/__init__.py`."""

import faulthandler
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from higgs_native.errors import MAX_MESSAGE, HiggsNativeError
from tests.helpers.descriptors import no_descriptor_stays
from tests.helpers.waiting import PATIENCE


CASES = int(os.environ.get("HIGGS_NATIVE_FUZZ_CASES", "1000"))
ONLY = os.environ.get("HIGGS_NATIVE_FUZZ_ONLY")
MAX_SECONDS = 20
"""Processor time of a case."""
MAX_WAIT = round(PATIENCE)
"""Seconds after which a case that waits is over, on a machine that may be busy."""
MAX_BYTES = 4 << 30

_SHOWN_FAILURES = 10


class Hang(BaseException):
    """A case takes too long. No `except Exception` holds it up."""


@no_descriptor_stays()
def run_cases(
    name: str, share: float, case: Callable[[random.Random, Path], None], folder: Path, record_property: Callable
) -> None:
    """Run a share of all cases, and fail with the first failures.

    Args:
        name: of the file's cases. Together with a case's number it is the seed of its generator.
        share: of `CASES`.
        case: draws an input from the generator, and gives it to the package. It may write into the folder, which is
            empty before each case. A HiggsNativeError is a refusal, any other exception a failure.
        folder: where to make that folder.
        record_property: the fixture, which hands on the line of the summary.
    """
    numbers = range(round(CASES * share)) if ONLY is None else [int(ONLY)]
    ends, failures, slowest = Counter(), [], 0.0
    limit = resource.getrlimit(resource.RLIMIT_AS)
    handlers = [(alarm, signal.signal(alarm, _on_alarm)) for alarm in (signal.SIGPROF, signal.SIGALRM)]
    threads = torch.get_num_threads()
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MAX_BYTES, limit[1]))
    torch.set_num_threads(1)  # those of small operators would wait for each other
    try:
        for number in numbers:
            begin = time.process_time()
            end = _end_of(case, random.Random(f"{name} {number}"), folder / str(number))
            slowest = max(slowest, time.process_time() - begin)
            ends[end.split(":")[0]] += 1
            if end not in ("accepted", "refused"):
                failures.append(f"case {number} {end}")
    finally:
        torch.set_num_threads(threads)
        resource.setrlimit(resource.RLIMIT_AS, limit)
        for alarm, handler in handlers:
            signal.signal(alarm, handler)
    counts = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    record_property("fuzz", f"{name}: {len(numbers)} cases, {counts}, the slowest {slowest:.1f} s")
    assert not failures, "\n".join(failures[:_SHOWN_FAILURES])


def _end_of(case: Callable[[random.Random, Path], None], generator: random.Random, folder: Path) -> str:
    """Return `accepted`, `refused`, or what is wrong with the case's end."""
    folder.mkdir()
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    signal.alarm(MAX_WAIT)
    # A hang outside of Python ends the process, with the place where it hangs.
    faulthandler.dump_traceback_later(2 * MAX_WAIT, exit=True)
    try:
        case(generator, folder)
    except HiggsNativeError as error:
        message = str(error)
        is_line = message.isprintable() and 0 < len(message) <= MAX_MESSAGE
        return "refused" if is_line else f"badly refused: {message!r:.1000}"
    except (Exception, Hang) as error:  # all kinds are findings
        trace, place = error.__traceback__, ""
        while trace is not None:
            place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
        return f"failed: {type(error).__name__} at {place}: {error!s:.300}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(folder)
    return "accepted"


def _on_alarm(*_: object) -> None:
    raise Hang("too long")


def _address_space() -> int:
    """Return the size of this process's memory map, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
