"""The linear operators' part of cuda_model.py: from few rows to many, and rows of x that are rounded before them."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.tools.cuda_constants import CASES, GAP_US, PORT_BYTES, TAIL_US, Gpu
from benchmarks.tools.cuda_launches import Launch
from benchmarks.tools.cuda_prediction import Library, Prediction, blocks_ahead
from benchmarks.tools.sass import LOAD_BYTES, WARP, Instruction, Kernel, instructions_per_kb
from benchmarks.tools.warp_simulation import SCHEDULERS
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.ops.formats import PANEL, QUANTIZATION_GROUP, WEIGHT_FORMATS


STEP_COLUMNS = {"bfloat16": 32, "fp8": 64, "int8": QUANTIZATION_GROUP, "int4": QUANTIZATION_GROUP}
"""Step<F>::kColumns of csrc/cuda/linear/weight_formats.h: columns that a warp takes at a time."""


class Linear(NamedTuple):
    """A linear operator: [n, k] weights and `rows` rows of x, which are normalized before it or not."""

    name: str
    n: int
    k: int
    rows: int
    norm: bool


def linears(config: HiggsAudioConfig, case: dict[str, Any]) -> Iterator[Linear]:
    """The linear operators, in the order of the launches."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    all_rows = case.get("batch") or case["text"] + case["audio"]
    # Rows of a prompt take a single feed-forward network together.
    split = "batch" not in case and config.is_dual(0)
    segments = [("text ", case["text"]), ("audio ", case["audio"])] if split else [("", all_rows)]
    yield Linear("qkv", (heads + 2 * config.num_key_value_heads) * config.head_dim, hidden, all_rows, True)
    yield Linear("o", hidden, heads * config.head_dim, all_rows, False)
    for name, rows in segments:
        yield Linear(name + "gate_up", 2 * inner, hidden, rows, True)
        yield Linear(name + "down", hidden, inner, rows, False)
    yield Linear("head", config.num_codebooks * config.codebook_size, hidden, case.get("batch", 1), True)


class Linears:
    """Predictions for the launches of linear operators on one GPU."""

    def __init__(self, gpu: Gpu, library: Library) -> None:
        self.gpu, self.library, self.kernels = gpu, library, library.kernels

    def narrow(
        self,
        launch: Launch,
        linear: Linear,
        format: str,
        previous: Launch | None,
        in_l2: dict[str, float] | None,
    ) -> Prediction:
        """Rows that the blocks of `gemm_kernel` round themselves, or that `pack` has rounded.

        Args:
            previous: the launch before.
            in_l2: bytes of the weights that earlier launches have prefetched, by case.
        """
        name, n, k, rows, norm = linear
        kernel, gpu = self.kernels[launch.kernel], self.gpu
        packed = launch.kernel.endswith("true>")
        path = kernel.linear_path(norm and not packed)
        path_bytes = sum(i.is_weight_load for i in path) * LOAD_BYTES * WARP
        weights = WEIGHT_FORMATS[format].packed_nbytes(n, k)
        warps = launch.threads // WARP
        panels = math.ceil(n / PANEL) / launch.y
        step_bytes = PANEL * STEP_COLUMNS[format] * WEIGHT_FORMATS[format].bits // 8
        steps = math.ceil(math.ceil(k / STEP_COLUMNS[format]) / warps)
        times = steps * step_bytes * math.ceil(panels) / path_bytes
        fitting = kernel.blocks_per_multiprocessor(launch.threads, launch.shared_bytes)
        # The multiprocessor with the most blocks decides.
        left, cycles = math.ceil(launch.blocks / gpu.multiprocessors), 0
        while left > 0:
            resident = min(left, fitting)
            scheduled = resident * warps // SCHEDULERS
            # The steps of one turn of the loop are loaded before it.
            cycles += self.library.cycles((launch.kernel, norm), path, times, scheduled, max(0.0, times - 1))
            cycles += self._round_cycles(
                launch, kernel, rows, STEP_COLUMNS[format], math.ceil(k / STEP_COLUMNS[format]), norm, scheduled
            )
            left -= resident
        busy = min(launch.blocks, gpu.multiprocessors)
        # x comes from L2: packed, as the main loop loads it beside weights; else each block reads its rows.
        loads = sum(i.is_global_load and i.load_bytes == LOAD_BYTES and not i.is_weight_load for i in path)
        x_bytes = launch.blocks * (warps * times * loads * LOAD_BYTES * WARP if packed else rows * k * 4)
        from_l2 = weights * launch.x + x_bytes
        ahead = blocks_ahead(gpu, self.kernels, launch, previous) * kernel.prefetched_bytes(warps)
        us, bound, idle_us = {}, "", {}
        for at in CASES:
            bandwidth = gpu.peak_gb_per_s * gpu.read_share.at(at) / 1e3
            between = GAP_US.at(at) + TAIL_US.at(at)
            # Blocks of this launch that wait already have loaded the same bytes as prefetches: each panel's first.
            # That is faster only if memory limits the launch: nothing is multiplied before the wait.
            in_l2_us = in_l2[at] / 1e6 / bandwidth if in_l2 else 0
            early_us = max(in_l2_us, min(ahead / 1e6 / bandwidth, between - GAP_US.at("best")))
            times_us = {
                "memory": max(0.0, weights / 1e6 / bandwidth - early_us),
                "L2": from_l2 / 1e6 / (gpu.l2_gb_per_s.at(at) / 1e3),
                "port": from_l2 / busy / (PORT_BYTES * gpu.cycles_per_us),
                "instructions": cycles / gpu.cycles_per_us,
            }
            limit = max(times_us, key=lambda what: times_us[what])
            us[at] = times_us[limit] + between
            # `o` prefetches at once, as L2 has its weights; the others behind their last loads.
            idle_us[at] = us[at] - times_us["memory"] if name == "o" else between - GAP_US.at("best")
            if at == "expected":
                bound, expected = limit, times_us
        details = {
            "weights_mb": weights / 1e6,
            "blocks_per_multiprocessor": fitting,
            "registers": kernel.registers,
            "prefetched_kb_per_multiprocessor": self._prefetched_kb(launch, kernel, min(times, 1)),
            "instructions_per_kb": instructions_per_kb(path),
            **{f"{what}_us": value for what, value in expected.items()},
        }
        return Prediction(name, launch.kernel, launch.blocks, us, bound, details, idle_us)

    def wide(self, launch: Launch, linear: Linear, format: str) -> Prediction:
        """More than 64 rows: blocks of 128 rows and 128 weight rows, through shared memory."""
        name, n, k, rows, _ = linear
        kernel, gpu = self.kernels[launch.kernel], self.gpu
        loop = max(
            (loop for loop in kernel.loops() if any(i.is_tensor_core for i in kernel.body(loop))),
            key=lambda loop: loop[1] - loop[0],
        )
        # Copies to shared memory come ahead of time, as far as L2 and the port let them.
        steps, warps = math.ceil(k / STEP_COLUMNS[format]), launch.threads // WARP
        cycles = 0
        for adds, times in ((True, min(steps, warps)), (False, max(0, steps - warps))):
            path = kernel.path(loop, self._wide_score(adds))
            cycles += self.library.cycles((launch.kernel, adds), path, times, warps // SCHEDULERS)
        waves = math.ceil(launch.blocks / gpu.multiprocessors)
        weights = WEIGHT_FORMATS[format].packed_nbytes(n, k)
        x_bytes = rows * steps * STEP_COLUMNS[format] * 2
        from_l2, busy = weights * launch.x + x_bytes * launch.y, min(launch.blocks, gpu.multiprocessors)
        us, bound = {}, ""
        for at in CASES:
            times_us = {
                "memory": weights / 1e3 / (gpu.peak_gb_per_s * gpu.read_share.at(at)),
                "L2": from_l2 / 1e3 / gpu.l2_gb_per_s.at(at),
                "port": from_l2 / busy / (PORT_BYTES * gpu.cycles_per_us),
                "instructions": waves * cycles / gpu.cycles_per_us,
            }
            limit = max(times_us, key=lambda what: times_us[what])
            us[at] = times_us[limit] + GAP_US.at(at) + TAIL_US.at(at)
            if at == "expected":
                bound, expected = limit, times_us
        details = {"weights_mb": weights / 1e6, "registers": kernel.registers}
        details |= {f"{what}_us": value for what, value in expected.items()}
        return Prediction(name, launch.kernel, launch.blocks, us, bound, details)

    @staticmethod
    def _wide_score(adds: bool) -> Callable[[Instruction], tuple[float, ...]]:
        """The way of a full step through the loop; `adds`: and the sums of a warp's steps are added."""

        def score(i: Instruction) -> tuple[float, ...]:
            return i.is_tensor_core, i.name == "LDGSTS", (i.name == "FADD") * (1 if adds else -1)

        return score

    @staticmethod
    def _steps_of(path: list[Instruction], step_columns: int) -> float:
        """K-steps of x that a path loads; a lane loads a quarter of the columns, 4 at a time."""
        return sum(i.is_global_load and i.load_bytes == LOAD_BYTES for i in path) / (step_columns / 16)

    def _round_cycles(
        self, launch: Launch, kernel: Kernel, rows: int, step_columns: int, steps: int, norm: bool, warps: int
    ) -> int:
        """Cycles until a block has rounded its rows of x, if it keeps them in shared memory, and their squares."""
        cycles = 0
        for loop in self._outer_loops(kernel):
            stores = any(i.name == "STS" for i in kernel.body(loop))
            if loop[1] < kernel.main_loop[0] and (stores or norm):
                # Four lanes round a row of a step; a warp sums the squares of all rows of a step.
                lanes = rows * 4 if stores else WARP
                path = kernel.path(loop, self._pack_score(norm))
                times = math.ceil(steps * lanes / launch.threads / self._steps_of(path, step_columns))
                cycles += self.library.cycles((launch.kernel, norm, loop), path, times, warps)
        return cycles

    def _prefetched_kb(self, launch: Launch, kernel: Kernel, share: float = 1) -> float:
        """KB of weights in flight per multiprocessor that has a block. `share`: of a path, if a warp has less."""
        fitting = kernel.blocks_per_multiprocessor(launch.threads, launch.shared_bytes)
        resident = min(fitting, max(1, launch.blocks // self.gpu.multiprocessors))
        return resident * kernel.prefetched_bytes(launch.threads // WARP) * share / 1024

    def pack(self, launch: Launch, linear: Linear, format: str) -> Prediction:
        """Rows of x that are rounded for all blocks, before a launch of many rows."""
        name, _, k, _, norm = linear
        kernel, gpu = self.kernels[launch.kernel], self.gpu
        warps = launch.threads // WARP
        steps = math.ceil(k / STEP_COLUMNS[format])
        cycles = 0
        for loop in self._outer_loops(kernel):
            stores = any(i.name == "STG" for i in kernel.body(loop))
            # A loop without stores sums the squares of a norm, in a separate block for all steps.
            if stores or norm:
                path = kernel.path(loop, self._pack_score(norm))
                shares = launch.y - 1 if stores else 1
                times = math.ceil(steps / (warps * shares * self._steps_of(path, STEP_COLUMNS[format])))
                of_loop = self.library.cycles((launch.kernel, norm, loop), path, times, warps // SCHEDULERS)
                cycles = max(cycles, of_loop)
        us = {at: cycles / gpu.cycles_per_us + GAP_US.at(at) for at in CASES}
        return Prediction(f"{name}: pack", launch.kernel, launch.blocks, us, "instructions", {})

    @staticmethod
    def _pack_score(norm: bool) -> Callable[[Instruction], tuple[float, ...]]:
        """The way of complete and aligned rows through a loop that rounds them; a norm's weights are of 16 bits."""

        def score(i: Instruction) -> tuple[float, ...]:
            loads_norm = i.is_global_load and i.load_bytes == 8
            return (
                loads_norm if norm else -loads_norm,
                i.is_global_load and i.load_bytes == LOAD_BYTES,
                -(i.is_global_load and i.load_bytes <= 4),
            )

        return score

    @staticmethod
    def _outer_loops(kernel: Kernel) -> list[tuple[int, int]]:
        """The loops before the first barrier that load, and lie in no other."""
        barrier = next(i.address for i in kernel.instructions if i.name == "BAR")
        loops = [
            loop for loop in kernel.loops() if loop[1] < barrier and any(i.is_global_load for i in kernel.body(loop))
        ]
        return [a for a in loops if not any(b[0] <= a[0] and a[1] <= b[1] and a != b for b in loops)]
