"""Common parts of cuda_model.py and cuda_linears.py: kernels, simulated loops, and blocks that start early."""

import heapq
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.tools.cuda_constants import Gpu
from benchmarks.tools.cuda_launches import Launch, record
from benchmarks.tools.sass import Instruction, Kernel
from benchmarks.tools.warp_simulation import repeat, simulate


@dataclass(frozen=True)
class Prediction:
    """A launch's predicted time in us, and what limits it."""

    name: str
    kernel: str
    blocks: int
    us: dict[str, float]
    bound: str
    details: dict[str, float]
    idle_us: dict[str, float] = field(default_factory=dict)
    """In which memory can load weights of later launches."""


class Library:
    """The compiled kernels, the launches of the emulated library, and simulated loops: the same on GPUs of a kind."""

    def __init__(self, kernels: dict[str, Kernel]) -> None:
        self.kernels = kernels
        self._launches: dict[str, list[Launch]] = {}
        self._cycles: dict[tuple[Any, ...], int] = {}

    def launches(self, multiprocessors: int, case: dict[str, Any]) -> list[Launch]:
        """See `record`."""
        key = json.dumps([multiprocessors, case])
        if key not in self._launches:
            self._launches[key] = record(multiprocessors, case)
        return self._launches[key]

    def cycles(
        self, key: tuple[Any, ...], path: list[Instruction], times: float, warps: int, refilled: float | None = None
    ) -> int:
        """Cycles of a path that `warps` warps of a scheduler take several times. `key` names the path."""
        key = (*key, times, warps, refilled)
        if key not in self._cycles:
            self._cycles[key] = simulate(repeat(path, times, refilled), max(1, warps))
        return self._cycles[key]


def makespan(cycles: Iterable[int], places: int) -> int:
    """Cycles until so many places have done all blocks, one at a time, in order."""
    free = [0] * places
    for of_block in cycles:
        heapq.heapreplace(free, free[0] + of_block)
    return max(free)


def blocks_ahead(gpu: Gpu, kernels: dict[str, Kernel], launch: Launch, previous: Launch | None) -> float:
    """Blocks that find room while the last ones of the launch before still run."""
    if previous is None:
        return 0
    kernel, before = kernels[launch.kernel], kernels[previous.kernel]
    count = gpu.multiprocessors
    resident = min(
        math.ceil(previous.blocks / count),
        before.blocks_per_multiprocessor(previous.threads, previous.shared_bytes),
    )
    registers = 65536 - resident * before.registers * previous.threads
    beside = max(0, registers // (kernel.registers * launch.threads))
    empty = max(0, count - previous.blocks)
    alone = kernel.blocks_per_multiprocessor(launch.threads, launch.shared_bytes)
    return min(launch.blocks, empty * alone + (count - empty) * beside)
