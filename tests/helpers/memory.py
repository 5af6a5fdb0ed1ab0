"""The memory that a process holds."""

import resource
from collections.abc import Callable
from pathlib import Path


def resident_bytes() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def least_growth(run: Callable[[], object], measure: Callable[[], int], rounds: int = 4) -> int:
    """Return the least growth of a measure in several rounds: a leak grows in each one, an arena in some."""
    growths = []
    for _ in range(rounds):
        before = measure()
        run()
        growths.append(measure() - before)
    return min(growths)
