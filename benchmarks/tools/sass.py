"""Read the compiled kernels of a CUDA library: resources, instructions, loops, and the path through a linear kernel.

    python -m benchmarks.tools.sass --update

prints the instructions of each linear kernel's main loop per KB of weights. With --update they become the budget of
tests/benchmarks/test_cuda_sass.py, which holds later builds to it. cuobjdump disassembles: it is part of the CUDA
toolkit and of the package `nvidia-cuda-cuobjdump`. No GPU is needed.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.cuda_resources import short_name
from higgs_native import _C


LIBRARY = Path(_C.__file__).with_name("libhiggs_native_cuda.so")
"""The kernels of the package that is imported, if it was built with CUDA."""
BUDGET = Path(__file__).with_name("sass_budget.json")
ARCHITECTURE = "sm_90a"
WARP, LOAD_BYTES = 32, 16
REGISTERS, MAX_WARPS, SHARED_BYTES, RESERVED_SHARED = 65536, 64, 233472, 1024
"""Of a multiprocessor of compute capability 9.0 (CUDA C++ Programming Guide, "Technical specifications")."""

_FUNCTION = re.compile(r"Function : (\S+)")
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+) )?([A-Z][\w.]*)\s*(.*?)\s*;")
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:\d+ SHARED:(\d+)")
_TARGET = re.compile(r"0x([0-9a-f]+)$")

T = TypeVar("T")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = _TARGET.search(self.operands) if self.name == "BRA" else None
        return int(found.group(1), 16) if found else None

    @property
    def is_global_load(self) -> bool:
        return self.name in ("LDG", "LD")

    @property
    def is_weight_load(self) -> bool:
        """Weights alone are loaded past L1, by `load_streaming`."""
        return self.name == "LDG" and ".NA." in self.opcode

    @property
    def is_tensor_core(self) -> bool:
        return self.name in ("HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA")

    @property
    def is_warpgroup_product(self) -> bool:
        return self.name in ("HGMMA", "IGMMA")

    @property
    def is_wait_for_products(self) -> bool:
        return self.opcode.startswith("WARPGROUP.DEPBAR")

    @property
    def load_bytes(self) -> int:
        """Bytes that a lane loads."""
        sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((size for part, size in sizes.items() if part in self.opcode.split(".")), 4)


@dataclass(frozen=True)
class Kernel:
    """A kernel of a library, for one architecture."""

    name: str
    registers: int
    shared_bytes: int
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def blocks(self) -> dict[int, tuple[Instruction, ...]]:
        """The basic blocks, by their first address."""
        starts = {i.target for i in self.instructions} | {self.instructions[0].address}
        for before, instruction in itertools.pairwise(self.instructions):
            if before.name in ("BRA", "EXIT", "RET"):
                starts.add(instruction.address)
        blocks: dict[int, list[Instruction]] = {}
        for instruction in self.instructions:
            if instruction.address in starts:
                block = blocks[instruction.address] = []
            block.append(instruction)
        return {start: tuple(block) for start, block in blocks.items()}

    def successors(self, start: int) -> Iterator[int]:
        """The blocks that may follow a block."""
        last = self.blocks[start][-1]
        if last.target is not None:
            yield last.target
        # A branch may also have its condition among its operands: `BRA.DIV UR4, 0x40`, `BRA P1, 0x40`.
        goes_on = last.name not in ("BRA", "EXIT", "RET") or last.predicate or "," in last.operands
        following = last.address + 16
        if goes_on and following in self.blocks:
            yield following

    def _after_whole_steps(self, start: int) -> Iterator[int]:
        """The blocks that may follow one where K-steps are whole: their weights are not loaded unit by unit, too."""
        block, last = self.blocks[start], self.blocks[start][-1]
        if last.target is not None and any(i.is_weight_load and i.predicate == last.predicate != "" for i in block):
            return iter((last.target,))
        return self.successors(start)

    def loops(self) -> list[tuple[int, int]]:
        """First and last address of each loop, of every branch backward."""
        branches = [(i.target, i.address) for i in self.instructions if i.target is not None]
        return [(target, address) for target, address in branches if target < address]

    def path(self, loop: tuple[int, int], score: Callable[[Instruction], tuple[float, ...]]) -> list[Instruction]:
        """The way through a loop with the highest sum of scores; the shortest of equals. Inner loops are left out."""
        first, last = loop
        scored = {
            start: tuple(map(sum, zip(*((*score(i), -1) for i in block), strict=True)))
            for start, block in self.blocks.items()
            if first <= start <= last
        }
        best: dict[int, tuple[tuple[float, ...], list[int]]] = {}
        for start in sorted(scored, reverse=True):
            # What closes the loop ends the way; what leaves it is none.
            ways = [best[after] for after in self._after_whole_steps(start) if after > start and after in best]
            if first in self.successors(start):
                ways.append(((0,) * len(scored[start]), []))
            if ways:
                value, rest = max(ways, key=lambda way: way[0])
                best[start] = tuple(map(sum, zip(scored[start], value, strict=True))), [start, *rest]
        return [instruction for start in best[first][1] for instruction in self.blocks[start]]

    def body(self, loop: tuple[int, int]) -> list[Instruction]:
        """The instructions between the ends of a loop."""
        first, last = loop
        return [i for i in self.instructions if first <= i.address <= last]

    @functools.cached_property
    def main_loop(self) -> tuple[int, int]:
        """The longest loop that loads weights."""
        # Code that is seldom run lies behind the rest of a kernel, and jumps back from there: past a barrier.
        loops = [
            loop
            for loop in self.loops()
            if any(i.is_weight_load for i in self.body(loop)) and not any(i.name == "BAR" for i in self.body(loop))
        ]
        return max(loops, key=lambda loop: loop[1] - loop[0])

    def linear_path(self, normalizes: bool) -> list[Instruction]:
        """The way through the main loop of a linear kernel, with the weights' loads of all its steps.

        The rows of x are complete and aligned. A norm's weights are of 16 bits, as in the published models; it has the
        squares of x.
        """

        def score(i: Instruction) -> tuple[float, ...]:
            # Norm weights are loaded by 8 bytes, float32 ones and x by 16.
            norm = i.is_global_load and i.load_bytes == 8
            return (
                i.is_weight_load,
                i.is_tensor_core,
                norm if normalizes else -norm,
                (i.name == "FFMA") * (1 if normalizes else -1),
                -(i.is_global_load and i.load_bytes <= 4),
                -(i.is_global_load and i.load_bytes == LOAD_BYTES and not i.is_weight_load),
            )

        return self.path(self.main_loop, score)

    def prefetched_bytes(self, warps: int) -> int:
        """Bytes of weights that a block loads before its main loop, on the way with the most of them."""
        first, _ = self.main_loop
        loads: dict[int, int] = {}  # from the beginning of a basic block on
        for start in sorted((start for start in self.blocks if start < first), reverse=True):
            later = (loads.get(following, 0) for following in self._after_whole_steps(start) if following > start)
            loads[start] = sum(i.is_weight_load for i in self.blocks[start]) + max(later, default=0)
        return loads[self.instructions[0].address] * LOAD_BYTES * WARP * warps

    def blocks_per_multiprocessor(self, threads: int, dynamic_shared: int) -> int:
        """Blocks that fit on a multiprocessor at a time; registers are given out 8 to a thread."""
        warps = threads // WARP
        registers = -(-self.registers // 8) * 8 * threads
        shared = self.shared_bytes + dynamic_shared + RESERVED_SHARED
        return min(REGISTERS // registers, MAX_WARPS // warps, SHARED_BYTES // shared)


def read_kernels(library: Path, architecture: str = ARCHITECTURE) -> dict[str, Kernel]:
    """The kernels of a library by their short names; none if it has no code for the architecture."""
    return parse_kernels(*(_cuobjdump(what, library, architecture) for what in ("-res-usage", "-sass")))


def parse_kernels(resource_usage: str, sass: str) -> dict[str, Kernel]:
    """The kernels in the output of cuobjdump."""
    usage = {name: (int(registers), int(shared)) for name, registers, shared in _USAGE.findall(resource_usage)}
    functions: dict[str, list[Instruction]] = {}
    instructions: list[Instruction] = []
    for line in sass.splitlines():
        if found := _FUNCTION.search(line):
            instructions = functions[found.group(1)] = []
        elif found := _INSTRUCTION.match(line):
            address, predicate, opcode, operands = found.groups(default="")
            instructions.append(Instruction(int(address, 16), predicate, opcode, operands))
    names = zip(functions, demangle(list(functions)), strict=True)
    return {short: Kernel(short, *usage[name], tuple(functions[name])) for name, short in names}


def demangle(names: list[str]) -> list[str]:
    """Short names of mangled ones."""
    output = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [short_name(name) for name in output.splitlines()]


def find_cuobjdump() -> str | None:
    """The path of cuobjdump, of the toolkit or of its package."""
    spec = importlib.util.find_spec("nvidia")
    folders = [f"{root}/cu13/bin" for root in (spec.submodule_search_locations or () if spec else ())]
    return shutil.which("cuobjdump", path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


def _cuobjdump(what: str, library: Path, architecture: str) -> str:
    tool = find_cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump must be on PATH; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    command = [tool, what, "-arch", architecture, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def missing_waits(kernel: Kernel) -> list[str]:
    """Instructions that may run before the wait for earlier launches, and must not: see csrc/cuda/device.h.

    Before it a linear kernel may load weights, and the scales of 4-bit ones, which are 8 bytes per lane; one of
    warpgroups copies weights by 8 bytes per lane, and x by 16; attention may load positions, slots and pages, of 4
    bytes. A wait with a condition is none.
    """
    before_wait = {"gemm_kernel": 8, "attention_kernel": 4}.get(kernel.name.partition("<")[0])
    copies_weights = kernel.name.startswith("warpgroup_gemm_kernel")
    waited = dict.fromkeys(kernel.blocks, True)
    waited[kernel.instructions[0].address] = False

    def after(start: int) -> bool:
        return waited[start] or any(i.name == "ACQBULK" and not i.predicate for i in kernel.blocks[start])

    changed = True
    while changed:
        changed = False
        for start in kernel.blocks:
            for following in kernel.successors(start):
                if waited[following] and not after(start):
                    waited[following] = False
                    changed = True
    wrong = []
    for start, block in kernel.blocks.items():
        done = waited[start]
        for i in block:
            done = done or (i.name == "ACQBULK" and not i.predicate)
            allowed = i.is_weight_load or (i.is_global_load and i.load_bytes == before_wait)
            allowed = allowed or (copies_weights and i.name == "LDGSTS" and i.load_bytes == 8)
            touches = i.is_global_load or i.name in ("STG", "ST", "ATOM", "ATOMG", "RED", "LDGSTS", "UBLKCP", "EXIT")
            if touches and not done and not allowed:
                wrong.append(f"{i.address:#x}: {i.opcode}")
    return wrong


def local_accesses(kernel: Kernel) -> int:
    """Loads and stores of memory for registers that don't fit, or for arrays with a variable index."""
    return sum(i.name in ("LDL", "STL") for i in kernel.instructions)


def weight_load_widths(kernel: Kernel) -> set[int]:
    """Bytes per lane of the loads of weights."""
    return {i.load_bytes for i in kernel.instructions if i.is_weight_load}


def instructions_per_kb(path: list[Instruction]) -> float:
    """Warp instructions per KB of weights."""
    return len(path) / (sum(i.is_weight_load for i in path) * LOAD_BYTES * WARP / 1024)


def linear_kernels(kernels: dict[str, Kernel]) -> dict[str, Kernel]:
    """The linear kernels on tensor cores; float32 serves comparisons alone."""
    return {
        name: kernel
        for name, kernel in kernels.items()
        if name.startswith("gemm_kernel") and "WeightFormat)0" not in name
    }


def measure_budget(kernels: dict[str, Kernel]) -> dict[str, dict[str, float]]:
    """Instructions per KB of each linear kernel, with and without a norm before it."""
    return {
        name: {
            case: round(instructions_per_kb(kernel.linear_path(case == "norm")), 2)
            # Packed rows are normalized already.
            for case in (("plain",) if name.endswith("true>") else ("plain", "norm"))
        }
        for name, kernel in sorted(linear_kernels(kernels).items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tools.sass", description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--update", action="store_true", help=f"write {BUDGET.name}")
    args = parser.parse_args()
    budget = measure_budget(read_kernels(args.library))
    for name, cases in budget.items():
        print(f"{name}: " + ", ".join(f"{count:.1f} instructions per KB ({case})" for case, count in cases.items()))
    if args.update:
        BUDGET.write_text(json.dumps(budget, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
