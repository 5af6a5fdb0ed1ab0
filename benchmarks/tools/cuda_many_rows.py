"""The part of cuda_model.py for linear operators by products of warpgroups: of many rows."""

import math
from collections.abc import Callable

from benchmarks.tools.cuda_constants import CASES, GAP_US, PORT_BYTES, TAIL_US, Gpu
from benchmarks.tools.cuda_launches import Launch
from benchmarks.tools.cuda_linears import ROW_TILE, STEP_COLUMNS, Linear
from benchmarks.tools.cuda_prediction import Library, Prediction
from benchmarks.tools.sass import WARP, Instruction
from benchmarks.tools.warp_simulation import MEMORY_CYCLES, SCHEDULERS
from higgs_native.ops.formats import PANEL, WEIGHT_FORMATS


SHARES, STAGE_STEPS, STAGES_IN_USE, BLOCK_PANELS = 8, 2, 2, 4
"""Constants of csrc/cuda/linear/warpgroup_mainloop.h: parts of the depth whose sums are added in order, their K-steps
in a stage, the stages that are not being copied, and panels of a block."""


class ManyRows:
    """Predictions for the launches of linear operators of many rows on one GPU."""

    def __init__(self, gpu: Gpu, library: Library) -> None:
        self.gpu, self.library = gpu, library

    def warpgroups(self, launch: Launch, linear: Linear, format: str, in_l2: dict[str, float] | None) -> Prediction:
        """The products, whose stages come through shared memory. Blocks along z share out the depth.

        Args:
            in_l2: bytes of the weights that earlier launches have prefetched, by case.
        """
        name, n, k, rows, _ = linear
        kernel, gpu = self.library.kernels[launch.kernel], self.gpu
        loop = max(
            (loop for loop in kernel.loops() if any(i.is_tensor_core for i in kernel.body(loop))),
            key=lambda loop: loop[1] - loop[0],
        )
        # Copies to shared memory come ahead of time, as far as L2 and the port let them.
        steps, shares, warps = math.ceil(k / STEP_COLUMNS[format]), SHARES // launch.z, launch.threads // WARP
        stages = sum(math.ceil((steps - share) / (SHARES * STAGE_STEPS)) for share in range(shares))
        cycles = MEMORY_CYCLES
        for ends_share, times in ((True, shares), (False, stages - shares)):
            path = kernel.path(loop, self._score(ends_share, launch.z > 1))
            cycles += self.library.cycles((launch.kernel, ends_share, launch.z > 1), path, times, warps // SCHEDULERS)
        cycles *= math.ceil(launch.blocks / gpu.multiprocessors)
        weights = WEIGHT_FORMATS[format].packed_nbytes(n, k)
        x_bytes = rows * steps * STEP_COLUMNS[format] * 2
        through_l2 = weights * launch.x + x_bytes * launch.y + self._share_bytes(launch, linear)
        # Blocks ask for the weights of their first stages before the wait.
        stage_bytes = STAGE_STEPS * BLOCK_PANELS * PANEL * STEP_COLUMNS[format] * WEIGHT_FORMATS[format].bits // 8
        x_of_stage = STAGE_STEPS * STEP_COLUMNS[format] * 2 * int(launch.kernel.split(", ")[1][:-1]) * ROW_TILE
        ahead = launch.shared_bytes // (stage_bytes + x_of_stage) - STAGES_IN_USE
        early_bytes = min(launch.blocks, gpu.multiprocessors) * ahead * stage_bytes
        busy = min(launch.blocks, gpu.multiprocessors)
        us, bound, idle_us = {}, "", {}
        for at in CASES:
            memory = gpu.peak_gb_per_s * gpu.read_share.at(at)
            early = min(early_bytes, GAP_US.at(at) * 1e3 * memory)
            times_us = {
                # Blocks ask early for the first steps of panels, which prefetches have as well.
                "memory": (weights - max(early, in_l2[at] if in_l2 else 0)) / 1e3 / memory,
                "L2": (through_l2 - early) / 1e3 / gpu.l2_gb_per_s.at(at),
                "port": through_l2 / busy / (PORT_BYTES * gpu.cycles_per_us),
                "instructions": cycles / gpu.cycles_per_us,
            }
            limit = max(times_us, key=lambda what: times_us[what])
            us[at] = times_us[limit] + GAP_US.at(at) + TAIL_US.at(at)
            if at == "worst":  # its own weights wait behind those of later launches
                us[at] += launch.prefetched_bytes / 1e3 / memory
            idle_us[at] = times_us[limit] - times_us["memory"]
            if at == "expected":
                bound, expected = limit, times_us
        details = {"weights_mb": weights / 1e6, "registers": kernel.registers, "blocks_of_depth": launch.z}
        details |= {f"{what}_us": value for what, value in expected.items()}
        return Prediction(name, launch.kernel, launch.blocks, us, bound, details, idle_us)

    def finish(self, launch: Launch, linear: Linear, products: Launch) -> Prediction:
        """The sums of all shares, which L2 has."""
        us = {
            at: GAP_US.at(at)
            + TAIL_US.at(at)
            + self._share_bytes(products, linear) / 1e3 / self.gpu.l2_gb_per_s.at(at)
            for at in CASES
        }
        return Prediction(f"{linear.name}: finish", launch.kernel, launch.blocks, us, "L2", {})

    @staticmethod
    def _share_bytes(launch: Launch, linear: Linear) -> int:
        """Bytes of the sums that blocks leave in memory: none unless several share out the depth."""
        if launch.z == 1:
            return 0
        padded_rows = math.ceil(linear.rows / ROW_TILE) * ROW_TILE
        return SHARES * math.ceil(linear.n / PANEL) * PANEL * padded_rows * 4

    @staticmethod
    def _score(ends_share: bool, stores: bool) -> Callable[[Instruction], tuple[float, ...]]:
        """The way of a full stage through the loop; its sums are added or stored if it `ends_share`."""

        def score(i: Instruction) -> tuple[float, ...]:
            is_store, is_sum = i.name == "STG", i.name == "FADD"
            kept = (is_store if stores else is_sum) * (1 if ends_share else -1)
            return i.is_tensor_core, i.name in ("LDGSTS", "LDS"), kept, -(is_store or is_sum)

        return score
