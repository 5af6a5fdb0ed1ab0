"""Constants of cuda_model.py: specifications of GPUs, and times of launches. A range is a guess."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from benchmarks.tools.warp_simulation import L2_CYCLES, MEMORY_CYCLES


@dataclass(frozen=True)
class Range:
    """A guess: the value if all goes well, the expected one, and the one if not."""

    best: float
    expected: float
    worst: float

    def at(self, case: str) -> float:
        return float(getattr(self, case))


CASES = ("best", "expected", "worst")


@dataclass(frozen=True)
class Gpu:
    """A GPU. `read_share`: the share of the peak bandwidth that reading alone reaches."""

    peak_gb_per_s: float
    multiprocessors: int = 132
    clock_ghz: float = 1.83  # of the dense peak in the data sheet: 132 x 4096 x clock
    read_share: Range = Range(0.93, 0.91, 0.87)  # published copies and reads of large arrays
    l2_gb_per_s: Range = Range(6000, 5500, 4700)  # a guess, from published reads of arrays that fit L2

    @property
    def cycles_per_us(self) -> float:
        """Cycles of a multiprocessor in a microsecond."""
        return self.clock_ghz * 1e3


GPUS = {"H100": Gpu(3350), "H200": Gpu(4800)}
"""SXM; bandwidth and multiprocessors from NVIDIA's data sheets."""

GAP_US = Range(0.5, 0.8, 1.2)
"""A guess: from the last block of a launch to the first result of the wait in the next one, launched dependently."""
TAIL_US = Range(1.0, 1.7, 2.7)
"""A guess: the slowest block beyond the mean, the sum over warps and the epilogue."""
FENCE_US = Range(0.3, 0.5, 0.8)
"""A guess: a fence of the whole GPU, or an atomic and its answer."""
EMPTY_BLOCK_US = Range(0.5, 0.8, 1.2)
"""A guess: a block of attention that finds no split of its row."""
FRAME_US = {
    "embed": Range(1.5, 2.5, 4),
    "sample_audio_codes_kernel": Range(5, 6, 9),
    "finish_audio_frames_kernel": Range(1.5, 2, 3.5),
    "copy to the host between graphs": Range(4, 6.5, 9),
}
"""Guesses: what a frame does beside layers and head. The sampler's loops depend on the logits. For five passes and 70
keys in its list, as of 1,026 normal numbers with top-k 50, its simulated parts were added up by hand: 5.2 us."""

PORT_BYTES = 64
"""Bytes that a multiprocessor takes from L2 in a cycle."""


def rests_on() -> dict[str, Any]:
    """Return the source of each constant, for the report."""
    ranges = {
        "launch gap": GAP_US,
        "tail": TAIL_US,
        "fence or atomic": FENCE_US,
        "empty block": EMPTY_BLOCK_US,
        **FRAME_US,
    }
    return {
        "SASS of sm_90a": "instructions, widths of loads, bytes in flight, registers, static shared memory",
        "launches recorded from the emulated library": "grids, threads, dynamic shared memory, kernels chosen",
        "weight formats": "bytes of weights",
        "specifications": {
            name: {"gb_per_s": gpu.peak_gb_per_s, "multiprocessors": gpu.multiprocessors, "clock_ghz": gpu.clock_ghz}
            for name, gpu in GPUS.items()
        },
        "published measurements": {
            "L2 cycles": L2_CYCLES,
            "share of the bandwidth": dataclasses.asdict(Gpu(0).read_share),
        },
        "guesses": {
            "cycles of loaded memory": MEMORY_CYCLES,
            "L2 gb_per_s": dataclasses.asdict(Gpu(0).l2_gb_per_s),
            "us": {name: dataclasses.asdict(guess) for name, guess in ranges.items()},
        },
        "assumptions": "prefetched weights stay in L2 until they are read, and arrive while memory would idle; "
        "reads of L2 do not wait behind them",
        "not counted": "the audio tokenizer's decoder, the host before the first launch, power limits",
    }
