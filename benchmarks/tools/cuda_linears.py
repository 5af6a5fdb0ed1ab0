"""The linear operators' part of cuda_model.py: up to 64 rows, integers, and rows of x that are rounded before them.

cuda_many_rows.py has the products of warpgroups, for more rows.
"""

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
ROW_TILE = 8
"""kRowTile."""


class Linear(NamedTuple):
    """A linear operator: [n, k] weights and `rows` rows of x, which are normalized before it or not."""

    name: str
    n: int
    k: int
    rows: int
    norm: bool


def linears(config: HiggsAudioConfig, case: dict[str, Any], is_last: bool = False) -> Iterator[Linear]:
    """The linear operators of a layer, in the order of the launches, and the head.

    The last layer of a prompt has queries, keys and values of all rows, and the rest of one alone.
    """
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    all_rows = case.get("batch") or case["text"] + case["audio"]
    kept = 1 if is_last and "batch" not in case else all_rows
    # Rows of a prompt take a single feed-forward network together.
    split = "batch" not in case and config.is_dual(0)
    segments = [("text ", case["text"]), ("audio ", case["audio"])] if split else [("", kept)]
    if split and kept == 1:
        segments = [("audio ", kept)]
    yield Linear("qkv", (heads + 2 * config.num_key_value_heads) * config.head_dim, hidden, all_rows, True)
    yield Linear("o", hidden, heads * config.head_dim, kept, False)
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
        panels_at_once, rows_at_once = map(int, launch.kernel.split(", ")[1:3])
        turns = math.ceil(math.ceil(math.ceil(n / PANEL) / panels_at_once) / launch.y)
        step_bytes = PANEL * STEP_COLUMNS[format] * WEIGHT_FORMATS[format].bits // 8 * panels_at_once
        steps = math.ceil(math.ceil(k / STEP_COLUMNS[format]) / warps)
        times = turns * steps * step_bytes / path_bytes
        fitting = kernel.blocks_per_multiprocessor(launch.threads, launch.shared_bytes)
        # The multiprocessor with the most blocks decides.
        left, cycles, refill = math.ceil(launch.blocks / gpu.multiprocessors), 0, 0
        while left > 0:
            resident = min(left, fitting)
            scheduled = resident * warps // SCHEDULERS
            # The steps of one turn of the loop are loaded before it.
            rounding = self._round_cycles(
                launch, kernel, rows, STEP_COLUMNS[format], math.ceil(k / STEP_COLUMNS[format]), norm, scheduled
            )
            cycles += self.library.cycles((launch.kernel, norm), path, times, scheduled, max(0.0, times - 1))
            cycles += rounding
            # Until a warp has multiplied a step, and loads another one.
            step = path[: next(index for index, i in enumerate(path) if i.is_weight_load)]
            refill = refill or rounding + self.library.cycles((launch.kernel, norm, "refill"), step, 1, scheduled)
            left -= resident
        busy = min(launch.blocks, gpu.multiprocessors)
        # x comes from L2: packed, as the main loop loads it beside weights; else each block reads its rows.
        loads = sum(i.is_global_load and i.load_bytes == LOAD_BYTES and not i.is_weight_load for i in path)
        x_bytes = launch.blocks * (warps * times * loads * LOAD_BYTES * WARP if packed else rows * k * 4)
        if packed and panels_at_once == 2 and format in ("bfloat16", "fp8"):  # tiles that are missing are not read
            x_bytes *= math.ceil(rows / ROW_TILE) / (launch.x * rows_at_once / ROW_TILE)
        from_l2 = weights * launch.x + x_bytes
        of_block = kernel.prefetched_bytes(warps) * min(times, 1)
        # Blocks load their first weights before the wait: some while the launch before still runs, others after it.
        waiting_mb = min(launch.blocks, gpu.multiprocessors * fitting) * of_block / 1e6
        ahead_mb = min(waiting_mb, blocks_ahead(gpu, self.kernels, launch, previous) * of_block / 1e6)
        refill_us = refill / gpu.cycles_per_us
        us, bound, idle_us = {}, "", {}
        for at in CASES:
            bandwidth = gpu.peak_gb_per_s * gpu.read_share.at(at) / 1e3  # MB per us
            l2_bandwidth = gpu.l2_gb_per_s.at(at) / 1e3
            between = GAP_US.at(at) + TAIL_US.at(at)
            # Prefetches begin at each panel's first bytes, as blocks do. Memory goes on with what these wait for.
            in_l2_us = (in_l2[at] if in_l2 else 0.0) / 1e6 / bandwidth
            if name in ("qkv", "down", "head"):  # those of the launch before alone
                in_l2_us = min(in_l2_us, between + refill_us)
            begin_us = max(in_l2_us, 0.0 if ahead_mb == waiting_mb else TAIL_US.at(at))
            beyond_us = min(waiting_mb / bandwidth - in_l2_us, between + refill_us - begin_us)
            early_us = in_l2_us + max(0.0, beyond_us)
            left_us = max(0.0, weights / 1e6 / bandwidth - early_us)
            # Blocks that begin after the launch before wait for their first loads, too.
            after_mb = max(0.0, GAP_US.at(at) - GAP_US.at("best")) * l2_bandwidth
            arrived_mb = min(early_us * bandwidth, ahead_mb + after_mb, waiting_mb)
            times_us = {
                "memory": left_us + (refill_us if left_us else 0),
                "L2": (from_l2 / 1e6 - arrived_mb) / l2_bandwidth,
                "port": from_l2 / busy / (PORT_BYTES * gpu.cycles_per_us),
                "instructions": cycles / gpu.cycles_per_us,
            }
            limit = max(times_us, key=lambda what: times_us[what])
            us[at] = times_us[limit] + between
            # Memory idles from the last weights to the first refill of the next launch, taken to be as late as here.
            # `o` prefetches at once, as L2 has its weights; the others behind their last loads.
            idle_us[at] = us[at] - left_us if name == "o" else between + refill_us
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
                turns = steps * lanes / launch.threads / self._steps_of(path, step_columns)
                # Warps beyond the last step have nothing to round.
                busy = math.ceil(warps * min(1, turns))
                cycles += self.library.cycles((launch.kernel, norm, loop), path, math.ceil(turns), busy)
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
        """The way of complete and aligned rows through a loop that rounds them; a norm's weights are of 16 bits.

        Integers have a scale, whose reciprocal is a special function; a norm has squares, which are fused
        multiply-adds. Norm weights of 32 bits are more loads of 16 bytes.
        """

        def score(i: Instruction) -> tuple[float, ...]:
            return (
                (i.is_global_load and i.load_bytes == 8) * norm,
                i.name == "MUFU",
                (i.name == "FFMA") * (1 if norm else -1),
                -(i.is_global_load and i.load_bytes <= 4),
                -(i.is_global_load and i.load_bytes == LOAD_BYTES),
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
