"""Simulate the warps of one scheduler of a multiprocessor, from the instructions that they issue.

Warps issue in order, one instruction a cycle, when operands and unit are ready. Caches, memory bandwidth and the other
schedulers have no part.
"""

import re
from collections.abc import Sequence

from benchmarks.tools.sass import Instruction


SCHEDULERS = 4
"""Of a multiprocessor."""

INTERVALS = {
    **dict.fromkeys(("FFMA", "FADD", "FMUL", "HFMA2", "HMUL2"), ("fma", 1)),
    **dict.fromkeys(("IMAD", "HADD2"), ("fma", 2)),
    **dict.fromkeys(("MUFU", "F2I", "I2F"), ("special", 8)),
    "SHFL": ("shuffle", 4),
    **dict.fromkeys(("LDG", "STG", "LDS", "STS", "LD", "ST", "ATOMG", "LDGSTS"), ("memory", 4)),
    **dict.fromkeys(("HMMA", "IMMA"), ("tensor", 8)),
    **dict.fromkeys(("WARPGROUP", "HGMMA", "IGMMA"), ("control", 1)),
    **dict.fromkeys(("BRA", "BSSY", "BSYNC", "NOP", "WARPSYNC", "YIELD"), ("control", 1)),
}
"""The unit of an instruction and the cycles of a scheduler's share of it that a warp takes: 32 lanes over the results
per cycle (CUDA C++ Programming Guide, "Throughput of native arithmetic instructions", 9.0). The others are the integer
unit's, 16 lanes. Conversions count as the slowest that the guide names; tensor cores as mma.sync at half the peak.
Products of a warpgroup go on beside their warp: see `Products`."""
INTEGER_UNIT = ("integer", 2)

LATENCIES = {"fma": 4, "integer": 5, "special": 24, "shuffle": 24, "memory": 30, "tensor": 33, "control": 2}
L2_CYCLES, MEMORY_CYCLES = 270, 700
"""Cycles until a result can be used: measured on an H100 by Luo et al., "Benchmarking and Dissecting the Nvidia Hopper
GPU Architecture" (about 260 for L2 and 480 for idle memory; loaded memory is a guess)."""
BARRIER_CYCLES = 30
FENCE_CYCLES = 30
"""A guess: until a warp goes on behind a fence that shows its copies to products of a warpgroup."""
SHARED_BYTES_PER_CYCLE = 32
"""A scheduler's share of what shared memory gives, or takes, in a cycle."""

_PRODUCT = re.compile(r"\.64x(\d+)x")
_REGISTER = re.compile(r"\b(U?R|U?P)(\d+)(\.64)?")


def dependencies(i: Instruction) -> tuple[list[str], list[str]]:
    """The registers and predicates that an instruction writes, and those that it reads."""
    writes: list[str] = []
    reads = [i.predicate.lstrip("!")] if i.predicate else []
    # First come results: a register, which stores and comparisons don't have, and predicates on either side of it.
    stores = i.name in ("STG", "ST", "STS", "STL", "RED", "LDGSTS", "BAR", "BRA", "EXIT", "BSSY", "BSYNC", "WARPSYNC")
    has_register, leading = not stores and not i.name.endswith("SETP"), not stores
    for index, operand in enumerate(i.operands.split(",")):
        found = _REGISTER.findall(operand)
        is_predicate = operand.strip().lstrip("U").startswith("P")
        is_result = leading and (is_predicate or has_register)
        has_register = has_register and is_predicate
        leading = is_result
        for kind, number, double in found:
            if i.is_warpgroup_product:
                # Sums are waited for by name; a and the descriptor of b are read when it begins.
                if index not in (1, 2):
                    continue
                count = 4 if kind == "R" else 1
            elif i.is_tensor_core:
                count = (4, 4, 2, 4)[min(index, 3)]
            elif is_result and i.name in ("LDG", "LDS", "LDC", "LD"):
                count = i.load_bytes // 4
            elif double or (is_result and (".WIDE" in i.opcode or i.opcode == "CS2R")):
                count = 2
            else:
                count = 1
            names = [f"{kind}{int(number) + offset}" for offset in range(count)]
            (writes if is_result else reads).extend(names)
    return writes, reads


def simulate(path: Sequence[Instruction], warps: int) -> int:
    """The cycles until all warps have the results of the same instructions."""
    steps = [_Step(i) for i in path]
    live = [_Warp(steps) for _ in range(warps)]
    unit_free = dict.fromkeys(LATENCIES, 0)
    products = Products()
    now = end = 0
    while live:
        times = [max(now, warp.earliest(unit_free)) for warp in live]
        issued = min(times)
        warp = live[times.index(issued)]
        end = max(end, warp.issue(issued, unit_free, products))
        now = issued + 1
        if warp.is_done:
            live.remove(warp)
    return end


class Products:
    """Products of warpgroups, which a scheduler's tensor core computes in turn at their full rate.

    64 rows and n columns, 16 deep in 16 bits, take n / 2 cycles, and read 32 n bytes of shared memory for all four
    schedulers (4,096 operations a cycle of a multiprocessor: CUDA C++ Programming Guide).
    """

    def __init__(self) -> None:
        self._free = 0

    def issue(self, columns: int, cycle: int, unit_free: dict[str, int]) -> int:
        """Begin a product of a warp; return the cycle of its sums."""
        read = max(unit_free["memory"], cycle) + 8 * columns // SHARED_BYTES_PER_CYCLE
        unit_free["memory"] = read
        self._free = max(self._free + columns // 2, cycle + columns // 2, read)
        return self._free + LATENCIES["tensor"]


class _Step:
    """What the simulation needs of an instruction."""

    def __init__(self, i: Instruction) -> None:
        # An instruction of predicate !PT never runs.
        self.unit, self.interval = INTERVALS["NOP"] if i.predicate == "!PT" else INTERVALS.get(i.name, INTEGER_UNIT)
        self.latency = LATENCIES[self.unit]
        if i.name in ("LDS", "STS", "LDGSTS") and self.unit == "memory":
            self.interval = i.load_bytes * 32 // SHARED_BYTES_PER_CYCLE
        if i.is_global_load:
            self.latency = MEMORY_CYCLES if i.is_weight_load else L2_CYCLES
        self.writes, reads = dependencies(i)
        self.needs = (*reads, *self.writes)
        # A barrier holds its warp back.
        self.until_next = {"BAR": BARRIER_CYCLES, "MEMBAR": FENCE_CYCLES}.get(i.name, 1)
        product = _PRODUCT.search(i.opcode)
        self.columns = int(product.group(1)) if i.is_warpgroup_product and product else 0
        self.ends_group = "gsb0" in i.operands and not i.is_wait_for_products
        self.groups_left = int(i.operands.rsplit(",", 1)[1], 16) if i.is_wait_for_products else None


class _Warp:
    def __init__(self, steps: list[_Step]) -> None:
        self._steps, self._position, self._earliest = steps, 0, 0
        self._ready: dict[str, int] = {}
        self._groups: list[int] = []  # when the products of each are done
        self._product = 0  # when the last one is

    @property
    def is_done(self) -> bool:
        return self._position == len(self._steps)

    def earliest(self, unit_free: dict[str, int]) -> int:
        """The cycle in which the next instruction may issue."""
        return max(self._earliest, unit_free[self._steps[self._position].unit])

    def issue(self, cycle: int, unit_free: dict[str, int], products: Products) -> int:
        """Issue the next instruction; return the cycle of its result."""
        step, ready = self._steps[self._position], self._ready
        self._position += 1
        unit_free[step.unit] = cycle + step.interval
        for register in step.writes:
            ready[register] = cycle + step.latency
        self._earliest = cycle + step.until_next
        if step.columns:
            self._product = products.issue(step.columns, cycle, unit_free)
        if step.ends_group:
            self._groups.append(self._product)
        if step.groups_left is not None:
            waited = self._groups[: len(self._groups) - step.groups_left]
            self._earliest = max([self._earliest, *waited])
        if not self.is_done:
            for register in self._steps[self._position].needs:
                self._earliest = max(self._earliest, ready.get(register, 0))
        return max(cycle + (step.latency if step.writes else 1), self._product)


def repeat(path: list[Instruction], times: float, refilled: float | None = None) -> list[Instruction]:
    """A path several times, the last time only in part.

    Args:
        path: its instructions.
        times: how often they run.
        refilled: how often weights are loaded for later steps: the last steps have none; None: each time.
    """
    whole = int(times)
    repeated = path * whole + path[: round((times - whole) * len(path))]
    if refilled is None:
        return repeated
    loads = round(refilled * sum(i.is_weight_load for i in path))
    kept = []
    for i in repeated:
        loads -= i.is_weight_load
        if not i.is_weight_load or loads >= 0:
            kept.append(i)
    return kept
