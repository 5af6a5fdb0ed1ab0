"""Predict a frame's time on a GPU, kernel by kernel, from the compiled kernels. No GPU is needed.

    python -m benchmarks.tools.cuda_model --json benchmarks/results/cuda_model.json

Registers, shared memory, instructions and loads come from the kernels' SASS (sass.py); grids, threads and dynamic
shared memory from the library's own launches at the published shapes (cuda_launches.py); bytes from the weight
formats. The other inputs are constants of the machine, with their sources in cuda_constants.py. A guess has a range;
the range of a prediction takes all of them at their best or at their worst.

A linear operator takes the longest of: reading its weights from memory; reading them and the rows of x from L2; the
main loop of the multiprocessor with the most blocks, simulated (warp_simulation.py). Before and after it come the gap
between launches and the tail, less the weights that blocks of the next launch have loaded by then, if they fit beside
those of this one. Wide blocks of many rows take the longest of the same; they prefetch nothing. Weights that earlier
launches prefetch into L2 take no time of memory as far as they arrive while it would idle: between launches, and in
attention but for its own keys and values. Attention takes the path of its multiprocessor with the most blocks through
a tile and behind it, simulated, and its fences.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.tools.cuda_constants import (
    CASES,
    EMPTY_BLOCK_US,
    FENCE_US,
    FRAME_US,
    GAP_US,
    GPUS,
    PORT_BYTES,
    TAIL_US,
    Gpu,
    rests_on,
)
from benchmarks.tools.cuda_launches import MODELS, Launch, record
from benchmarks.tools.sass import (
    LIBRARY,
    LOAD_BYTES,
    WARP,
    Instruction,
    Kernel,
    instructions_per_kb,
    read_kernels,
)
from benchmarks.tools.warp_simulation import L2_CYCLES, MEMORY_CYCLES, SCHEDULERS, repeat, simulate
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.ops.formats import PANEL, QUANTIZATION_GROUP, WEIGHT_FORMATS


DEPENDENT_LOADS = 2
"""Loads of attention that wait for each other before its first keys: cache position and slot, then pages."""
TILE_POSITIONS, MAX_SPLITS = 64, 32
"""kTile and kMaxSplits of csrc/cuda/attention.cu."""

STEP_COLUMNS = {"bfloat16": 32, "fp8": 64, "int8": QUANTIZATION_GROUP, "int4": QUANTIZATION_GROUP}
"""Step<F>::kColumns of csrc/cuda/linear/weight_formats.h: columns that a warp takes at a time."""

FIRST_FRAMES = 4
"""Frames of the first sound."""


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


class Model:
    """Predictions for one GPU."""

    def __init__(self, gpu: Gpu, library: Library) -> None:
        self.gpu, self.library, self.kernels = gpu, library, library.kernels

    def pass_of(self, case: dict[str, Any], position: int) -> tuple[list[Prediction], list[Prediction]]:
        """Predictions for the launches of a layer, and for those outside of layers.

        Args:
            case: of `cuda_launches.record`.
            position: of the rows; in a prompt, their mean.
        """
        config = MODELS[case["model"]]
        launches = self.library.launches(self.gpu.multiprocessors, case)
        linears = list(self._linears(config, case))
        rows = iter([*linears[:-1], *linears])
        layer: list[Prediction] = []
        rest: list[Prediction] = []
        previous: Launch | None = None
        current: tuple[str, int, int, int, bool] | None = None
        in_l2: dict[str, dict[str, float]] = {}  # bytes by linear operator and case
        for launch in launches:
            outside = launch.op in ("embed", "rms_norm_linear", "sample_audio_frame")
            to = rest if outside else layer
            if launch.kernel.startswith("pack_activations"):
                current = next(rows)
                to.append(self._pack(launch, current, case["format"]))
            elif launch.kernel.startswith("gemm_kernel"):
                linear = current or next(rows)
                current = None
                arrived = in_l2.pop(linear[0], None)
                to.append(self._linear(launch, linear, case["format"], previous, arrived))
                self._prefetch(in_l2, launch, to[-1], linears, case["format"])
            elif launch.kernel.startswith("wide_gemm_kernel"):
                to.append(self._wide_linear(launch, next(rows) if current is None else current, case["format"]))
                current = None
            elif launch.op == "attention":
                to.append(self._attention(launch, config, position, "batch" in case, previous))
                self._prefetch(in_l2, launch, to[-1], linears, case["format"])
            elif launch.kernel == "rope_kernel":
                us = {at: GAP_US.at(at) + 3 * L2_CYCLES / self._cycles_per_us for at in CASES}
                to.append(Prediction("rope", launch.kernel, launch.blocks, us, "latency", {}))
            else:
                guess = FRAME_US["embed" if launch.op == "embed" else launch.kernel.partition("<")[0]]
                us = {at: guess.at(at) for at in CASES}
                to.append(Prediction(launch.kernel, launch.kernel, launch.blocks, us, "guess", {}))
            previous = launch
        if "batch" in case:
            name = "copy to the host between graphs"
            rest.append(Prediction(name, "", 0, {at: FRAME_US[name].at(at) for at in CASES}, "guess", {}))
        return layer[len(layer) // 2 :], rest

    def _prefetch(
        self,
        in_l2: dict[str, dict[str, float]],
        launch: Launch,
        done: Prediction,
        linears: list[tuple[str, int, int, int, bool]],
        format: str,
    ) -> None:
        """Add the weights of later operators that arrive in L2 while memory would idle in a launch."""
        following = {"attention": ("o", "gate_up"), "o": ("gate_up",), "gate_up": ("down",), "down": ("qkv",)}
        sizes = {name: WEIGHT_FORMATS[format].packed_nbytes(n, k) for name, n, k, *_ in linears}
        left = dict.fromkeys(CASES, float(launch.prefetched_bytes))
        for name in following.get(done.name, ()) if launch.prefetched_bytes else ():
            of_name = in_l2.setdefault(name, dict.fromkeys(CASES, 0.0))
            for at in CASES:
                bandwidth = self.gpu.peak_gb_per_s * self.gpu.read_share.at(at) * 1e3  # bytes per us
                fits = min(left[at], done.idle_us[at] * bandwidth, sizes[name] - of_name[at])
                of_name[at] += fits
                done.idle_us[at] -= fits / bandwidth
                left[at] -= fits

    @property
    def _cycles_per_us(self) -> float:
        return self.gpu.clock_ghz * 1e3

    @staticmethod
    def _linears(config: HiggsAudioConfig, case: dict[str, Any]) -> Iterable[tuple[str, int, int, int, bool]]:
        """Name, n, k, rows of x and norm of each linear operator, in the order of the launches."""
        hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        all_rows = case.get("batch") or case["text"] + case["audio"]
        # Rows of a prompt take a single feed-forward network together.
        split = "batch" not in case and config.is_dual(0)
        segments = [("text ", case["text"]), ("audio ", case["audio"])] if split else [("", all_rows)]
        yield "qkv", (heads + 2 * config.num_key_value_heads) * config.head_dim, hidden, all_rows, True
        yield "o", hidden, heads * config.head_dim, all_rows, False
        for name, rows in segments:
            yield name + "gate_up", 2 * inner, hidden, rows, True
            yield name + "down", hidden, inner, rows, False
        yield "head", config.num_codebooks * config.codebook_size, hidden, case.get("batch", 1), True

    def _linear(
        self,
        launch: Launch,
        linear: tuple[str, int, int, int, bool],
        format: str,
        previous: Launch | None,
        in_l2: dict[str, float] | None,
    ) -> Prediction:
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
        ahead = self._blocks_ahead(launch, previous) * kernel.prefetched_bytes(warps)
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
                "port": from_l2 / busy / (PORT_BYTES * self._cycles_per_us),
                "instructions": cycles / self._cycles_per_us,
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
            "prefetched_kb_per_multiprocessor": self.prefetched_kb(launch, kernel, min(times, 1)),
            "instructions_per_kb": instructions_per_kb(path),
            **{f"{what}_us": value for what, value in expected.items()},
        }
        return Prediction(name, launch.kernel, launch.blocks, us, bound, details, idle_us)

    def _wide_linear(self, launch: Launch, linear: tuple[str, int, int, int, bool], format: str) -> Prediction:
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
                "port": from_l2 / busy / (PORT_BYTES * self._cycles_per_us),
                "instructions": waves * cycles / self._cycles_per_us,
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

    def prefetched_kb(self, launch: Launch, kernel: Kernel, share: float = 1) -> float:
        """KB of weights in flight per multiprocessor that has a block. `share`: of a path, if a warp has less."""
        fitting = kernel.blocks_per_multiprocessor(launch.threads, launch.shared_bytes)
        resident = min(fitting, max(1, launch.blocks // self.gpu.multiprocessors))
        return resident * kernel.prefetched_bytes(launch.threads // WARP) * share / 1024

    def _blocks_ahead(self, launch: Launch, previous: Launch | None) -> float:
        """Blocks that find room while the last ones of the launch before still run."""
        if previous is None:
            return 0
        kernel, before = self.kernels[launch.kernel], self.kernels[previous.kernel]
        count = self.gpu.multiprocessors
        resident = min(
            math.ceil(previous.blocks / count),
            before.blocks_per_multiprocessor(previous.threads, previous.shared_bytes),
        )
        registers = 65536 - resident * before.registers * previous.threads
        beside = max(0, registers // (kernel.registers * launch.threads))
        empty = max(0, count - previous.blocks)
        alone = kernel.blocks_per_multiprocessor(launch.threads, launch.shared_bytes)
        return min(launch.blocks, empty * alone + (count - empty) * beside)

    def _pack(self, launch: Launch, linear: tuple[str, int, int, int, bool], format: str) -> Prediction:
        name, _, k, _, norm = linear
        kernel = self.kernels[launch.kernel]

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
        us = {at: cycles / self._cycles_per_us + GAP_US.at(at) for at in CASES}
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

    def _attention(
        self, launch: Launch, config: HiggsAudioConfig, position: int, own_sequences: bool, previous: Launch | None
    ) -> Prediction:
        kernel, gpu = self.kernels[launch.kernel], self.gpu
        tiles = math.ceil((position + 1) / TILE_POSITIONS)
        tiles_of_split = math.ceil(tiles / min(tiles, MAX_SPLITS))
        splits = math.ceil(tiles / tiles_of_split)
        splits_of_block = math.ceil(splits / launch.y)
        tiles_of_block = tiles_of_split * splits_of_block

        def loads(i: Instruction) -> tuple[float, ...]:
            return (i.is_global_load and i.load_bytes == LOAD_BYTES, i.name == "FFMA")

        tile_loop = min(
            (loop for loop in kernel.loops() if self._loads_of(kernel, loop) >= 8), key=lambda loop: loop[1] - loop[0]
        )
        path = kernel.path(tile_loop, loads)
        live, fitting = launch.x * min(splits, launch.y), kernel.blocks_per_multiprocessor(launch.threads, 0)
        resident = min(fitting, math.ceil(live / gpu.multiprocessors))
        scheduled = resident * launch.threads // WARP // SCHEDULERS
        waves = live / (gpu.multiprocessors * fitting) if live > gpu.multiprocessors * fitting else 1
        # Blocks that start before qkv ends have found their pages by then, and prefetched the first two tiles.
        starts_early = self._blocks_ahead(launch, previous) >= live
        cycles = L2_CYCLES
        if not starts_early:
            cycles += DEPENDENT_LOADS * L2_CYCLES + MEMORY_CYCLES - L2_CYCLES
        cycles += max(0, tiles_of_block - 2) * (MEMORY_CYCLES - L2_CYCLES)
        cycles += self.library.cycles((launch.kernel, "tile"), path, tiles_of_block, scheduled)
        # Behind the tiles: sums of warps, then what the last block does. All instructions count, also of other cases.
        behind = [i for i in kernel.instructions if i.address > tile_loop[1]]
        counter = next(index for index, i in enumerate(behind) if i.name == "ATOMG")
        end = next(index for index, i in enumerate(behind) if i.name == "EXIT" and not i.predicate)
        merges = min(splits, launch.y) > 1
        cycles += self.library.cycles((launch.kernel, "sums"), behind[:counter], splits_of_block, scheduled)
        alone = launch.threads // WARP // SCHEDULERS  # the last blocks of the items are on different multiprocessors
        merge = self.library.cycles((launch.kernel, "merge"), behind[counter:end], 1, alone) if merges else 0
        fences = 2 if merges else 0  # one before the counter, and the counter
        kv = launch.x * (position + 1) * config.head_dim * 2 * 2
        us, bound, idle_us = {}, "", {}
        for at in CASES:
            # The rows of a prompt share their keys and values, which stay in L2.
            bandwidth = gpu.peak_gb_per_s * gpu.read_share.at(at) if own_sequences else gpu.l2_gb_per_s.at(at)
            memory = kv / 1e3 / bandwidth
            blocks = (waves * cycles + merge) / self._cycles_per_us + fences * FENCE_US.at(at)
            blocks += (launch.blocks - live) / (gpu.multiprocessors * fitting) * EMPTY_BLOCK_US.at(at)
            us[at] = GAP_US.at(at) + max(memory, blocks)
            # Weights come behind the first keys and values.
            idle_us[at] = max(0.0, max(memory, blocks) - memory - 2 * L2_CYCLES / self._cycles_per_us)
            if at == "expected":
                bound = ("memory" if own_sequences else "L2") if memory > blocks else "latency"
        details = {
            "live_blocks": live,
            "kv_mb": kv / 1e6,
            "starts_early": starts_early,
            "tiles_us": waves * cycles / self._cycles_per_us,
            "merge_us": merge / self._cycles_per_us,
        }
        return Prediction("attention", launch.kernel, launch.blocks, us, bound, details, idle_us)

    @staticmethod
    def _loads_of(kernel: Kernel, loop: tuple[int, int]) -> int:
        return sum(i.is_global_load and i.load_bytes == LOAD_BYTES for i in kernel.body(loop))


def total_us(layers: int, parts: tuple[list[Prediction], list[Prediction]]) -> dict[str, float]:
    """us of a whole pass."""
    layer, rest = parts
    return {at: layers * sum(p.us[at] for p in layer) + sum(p.us[at] for p in rest) for at in CASES}


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = predict(read_kernels(args.library))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def predict(kernels: dict[str, Kernel]) -> dict[str, Any]:
    """All predictions, printed as they are made."""
    report: dict[str, Any] = {"rests_on": rests_on()}
    library = Library(kernels)
    for gpu_name, gpu in GPUS.items():
        model = Model(gpu, library)
        for name, config in MODELS.items():
            for format in ("bfloat16", "fp8", "int8", "int4") if name == "v2" else ("bfloat16", "int8", "int4"):
                entry = _predict_model(model, gpu_name, name, config, format)
                report.setdefault(gpu_name, {}).setdefault(name, {})[format] = entry
    return report


def _predict_model(model: Model, gpu: str, name: str, config: HiggsAudioConfig, format: str) -> dict[str, Any]:
    layers = config.num_hidden_layers
    frame = model.pass_of({"model": name, "format": format, "batch": 1}, 1024)
    early = model.pass_of({"model": name, "format": format, "batch": 1}, 270)
    batch = model.pass_of({"model": name, "format": format, "batch": 64}, 512)
    prompt = model.pass_of({"model": name, "format": format, "text": 83, "audio": 167}, 125)
    frame_us, batch_us, prompt_us = (total_us(layers, parts) for parts in (frame, batch, prompt))
    early_us = total_us(layers, early)
    # Codebooks are delayed, and exact samples need the decoder's receptive field; the prompt gives the first frame.
    drawn = FIRST_FRAMES + config.num_codebooks - 1 + HiggsAudioTokenizerConfig().decoder_context
    entry = {
        "frame_ms_at_1k": {at: round(us / 1e3, 3) for at, us in frame_us.items()},
        "batch_64_at_512_ms": {at: round(us / 1e3, 3) for at, us in batch_us.items()},
        "batch_64_at_512_audio_s_per_s": {at: round(64 * 0.04 / us * 1e6) for at, us in batch_us.items()},
        "prompt_of_250_ms": {at: round(us / 1e3, 2) for at, us in prompt_us.items()},
        "first_4_frames_ms_without_audio_decoder": {
            at: round((prompt_us[at] + (drawn - 1) * early_us[at]) / 1e3, 1) for at in CASES
        },
        "launches": {
            what: [_as_json(p) for part in parts for p in part]
            for what, parts in (("frame", frame), ("batch_64", batch), ("prompt_250", prompt))
        },
    }
    print(f"{gpu} {name} {format}: " + ", ".join(f"{k} {v}" for k, v in entry.items() if k != "launches"))
    for p in (*frame[0], *frame[1]):
        print(f"    {p.name:32} {p.blocks:4} blocks {p.us['expected']:6.2f} us, {p.bound}; " + ", ".join(
            f"{k} {v:.1f}" for k, v in p.details.items()
        ))  # fmt: skip
    return entry


def _as_json(p: Prediction) -> dict[str, Any]:
    return {
        "name": p.name,
        "kernel": p.kernel,
        "blocks": p.blocks,
        "us": {at: round(us, 2) for at, us in p.us.items()},
        "bound": p.bound,
        **{what: round(value, 2) for what, value in p.details.items()},
    }


if __name__ == "__main__":
    main()
