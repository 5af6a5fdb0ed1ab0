"""Predict a frame's time on a GPU, kernel by kernel, from the compiled kernels. No GPU is needed.

    python -m benchmarks.tools.cuda_model --json benchmarks/results/cuda_model.json

Registers, shared memory, instructions and loads come from the kernels' SASS (sass.py); grids, threads and dynamic
shared memory from the library's own launches at the published shapes (cuda_launches.py); bytes from the weight
formats. The other inputs are constants of the machine, with their sources in cuda_constants.py. A guess has a range;
the range of a prediction takes all of them at their best or at their worst.

A linear operator takes the longest of: reading its weights from memory; reading them and the rows of x from L2; the
main loop of the multiprocessor with the most blocks, simulated (warp_simulation.py). Before and after it come the gap
between launches and the tail. Memory would idle from a launch's last weights to the first ones that the next launch
asks for after its wait, when x is rounded and a step multiplied. In that time arrive weights that earlier launches
prefetch into L2, then those that blocks ask for before their wait: beside the blocks of the launch before, or after
them. Blocks of warpgroups take the longest of the same. Attention takes the path of its multiprocessor with the most
blocks, simulated from the wait through its tiles to its end, and its fences; its keys and values are asked for before
its wait, where blocks can start early.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.tools.cuda_constants import (
    CASES,
    EMPTY_BLOCK_US,
    FENCE_US,
    FRAME_US,
    GAP_US,
    GPUS,
    TAIL_US,
    Gpu,
    rests_on,
)
from benchmarks.tools.cuda_launches import MODELS, Launch
from benchmarks.tools.cuda_linears import Linear, Linears, linears
from benchmarks.tools.cuda_many_rows import ManyRows
from benchmarks.tools.cuda_prediction import Library, Prediction, blocks_ahead, makespan
from benchmarks.tools.sass import LIBRARY, LOAD_BYTES, WARP, Instruction, Kernel, read_kernels
from benchmarks.tools.warp_simulation import L2_CYCLES, MEMORY_CYCLES, SCHEDULERS
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.ops.formats import WEIGHT_FORMATS


DEPENDENT_LOADS = 2
"""Loads of attention that wait for each other before its first keys: cache position and slot, then pages."""
TILE_POSITIONS, MAX_SPLITS, MERGED_SPLITS = 64, 32, 8
"""kTile of csrc/cuda/attention/tile.h, kMaxSplits of csrc/cuda/attention/splits.h, and kPiece of attention.cu."""

FIRST_FRAMES = 4
"""Frames of the first sound."""


class Model:
    """Predictions for one GPU."""

    def __init__(self, gpu: Gpu, library: Library) -> None:
        self.gpu, self.library, self.kernels = gpu, library, library.kernels
        self._linears, self._many_rows = Linears(gpu, library), ManyRows(gpu, library)

    def pass_of(self, case: dict[str, Any], position: int) -> tuple[list[Prediction], list[Prediction]]:
        """Predictions for the launches of a layer, and for those outside of layers.

        The last layer of a prompt leaves out rows, and counts as outside.

        Args:
            case: of `cuda_launches.record`.
            position: of the rows; in a prompt, their mean.
        """
        config = MODELS[case["model"]]
        launches = self.library.launches(self.gpu.multiprocessors, case)
        coming = [*list(linears(config, case))[:-1], *linears(config, case, is_last=True)]
        layer: list[Prediction] = []
        rest: list[Prediction] = []
        previous: Launch | None = None
        current: Linear | None = None
        in_l2: dict[str, dict[str, float]] = {}  # bytes by linear operator and case
        asked = dict.fromkeys(CASES, 0.0)
        for launch in launches:
            outside = launch.op in ("embed", "rms_norm_linear", "sample_audio_frame")
            to = rest if outside else layer
            if launch.kernel.startswith("pack_activations"):
                current = coming.pop(0)
                to.append(self._linears.pack(launch, current, case["format"]))
            elif launch.kernel.startswith("gemm_kernel"):
                linear = current if previous is not None and previous.kernel.startswith("pack_activations") else None
                linear = linear or coming.pop(0)
                arrived = in_l2.pop(linear.name, None)
                to.append(self._linears.narrow(launch, linear, case["format"], previous, arrived))
                if linear.name == "qkv":  # before `o`, attention's blocks load their keys and values
                    for at in CASES:
                        kv_us = self._kv_us(case, config, position, at)
                        to[-1].idle_us[at] = max(0.0, GAP_US.at(at) + TAIL_US.at(at) - kv_us)
                self._prefetch(in_l2, asked, launch, to[-1], coming, case["format"])
            elif launch.kernel.startswith("warpgroup_gemm_kernel"):
                if current is None or to[-1].name != f"{current.name}: pack":  # gate_up has packed the rows of down
                    current = coming.pop(0)
                arrived = in_l2.pop(current.name, None)
                to.append(self._many_rows.warpgroups(launch, current, case["format"], arrived))
                self._prefetch(in_l2, asked, launch, to[-1], coming, case["format"])
            elif launch.kernel.startswith("finish_shares_kernel"):
                assert current is not None
                assert previous is not None
                to.append(self._many_rows.finish(launch, current, previous))
            elif launch.kernel.startswith("prompt_attention_kernel"):
                to.append(self._prompt_attention(launch, config, position, case))
            elif launch.op == "attention":
                of_prompt = "batch" not in case  # the row that its last layer keeps
                place, rows_of = (case["text"] + case["audio"] - 1, {"batch": 1}) if of_prompt else (position, case)
                to.append(self._attention(launch, config, place, rows_of, previous))
                self._prefetch(in_l2, asked, launch, to[-1], coming, case["format"])
            elif launch.kernel == "rope_kernel":
                us = {at: GAP_US.at(at) + 3 * L2_CYCLES / self.gpu.cycles_per_us for at in CASES}
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
        last = max(index for index, p in enumerate(layer) if p.name == "qkv: pack")
        return layer[:last], [*layer[last:], *rest]

    def _prefetch(
        self,
        in_l2: dict[str, dict[str, float]],
        asked: dict[str, float],
        launch: Launch,
        done: Prediction,
        coming: list[Linear],
        format: str,
    ) -> None:
        """Add the weights of later operators that arrive in L2 while memory would idle in a launch.

        Args:
            in_l2: by operator and case.
            asked: bytes that the launch before asked for, and that have not arrived; then those of this one.
            launch: of `done`.
            done: the prediction.
            coming: the linear operators behind it.
            format: of the weights.
        """
        # The first of each kind: text rows come before audio rows.
        first = {linear.name.split()[-1]: linear for linear in reversed(coming)}
        following = {
            "qkv": ("o",),
            "attention": ("o", "gate_up"),
            "o": ("gate_up",),
            "gate_up": ("down",),
            "down": tuple(linear.name for linear in coming[:1]),  # of the layer behind it, or the head
        }
        sizes = {name: WEIGHT_FORMATS[format].packed_nbytes(n, k) for name, n, k, *_ in first.values()}
        # `o` finds its weights in L2, so that memory goes on with what attention asked for.
        left = {at: launch.prefetched_bytes + (asked[at] if done.name == "o" else 0.0) for at in CASES}
        kinds = following.get(done.name.split()[-1], ()) if launch.prefetched_bytes else ()
        for name in (first[kind].name for kind in kinds if kind in first):
            of_name = in_l2.setdefault(name, dict.fromkeys(CASES, 0.0))
            for at in CASES:
                bandwidth = self.gpu.peak_gb_per_s * self.gpu.read_share.at(at) * 1e3  # bytes per us
                fits = max(0.0, min(left[at], done.idle_us[at] * bandwidth, sizes[name] - of_name[at]))
                of_name[at] += fits
                done.idle_us[at] -= fits / bandwidth
                left[at] -= fits
        if done.name == "attention" and "o" in in_l2:  # `o` itself loads the rest of its weights
            for at in CASES:
                left[at] = max(0.0, left[at] - (sizes["o"] - in_l2["o"][at]))
        asked.update(left)

    def _attention(
        self, launch: Launch, config: HiggsAudioConfig, position: int, case: dict[str, Any], previous: Launch | None
    ) -> Prediction:
        kernel, gpu = self.kernels[launch.kernel], self.gpu
        tiles = math.ceil((position + 1) / TILE_POSITIONS)
        tiles_of_split = math.ceil(tiles / min(tiles, MAX_SPLITS))
        splits = math.ceil(tiles / tiles_of_split)
        splits_of_block = math.ceil(splits / launch.y)
        tiles_of_block = tiles_of_split * splits_of_block

        def score(i: Instruction) -> tuple[float, ...]:
            return (i.is_global_load and i.load_bytes == LOAD_BYTES, i.is_tensor_core)

        tile_loop = min(
            (loop for loop in kernel.loops() if self._loads_of(kernel, loop) >= 8), key=lambda loop: loop[1] - loop[0]
        )
        path = kernel.path(tile_loop, score)
        live, fitting = launch.x * min(splits, launch.y), kernel.blocks_per_multiprocessor(launch.threads, 0)
        resident = min(fitting, math.ceil(live / gpu.multiprocessors))
        scheduled = resident * launch.threads // WARP // SCHEDULERS
        waves = live / (gpu.multiprocessors * fitting) if live > gpu.multiprocessors * fitting else 1
        # Blocks that start before qkv ends have found their pages by then, and prefetched the first two tiles.
        starts_early = blocks_ahead(gpu, self.kernels, launch, previous) >= live
        # Between the wait and the tiles come the first keys and values, and the query. Prefetches count once.
        ahead = [i for i in kernel.instructions if i.address < tile_loop[0]]
        wait = max(index for index, i in enumerate(ahead) if i.name == "ACQBULK")
        cycles = self.library.cycles((launch.kernel, "query"), ahead[wait + 1 :], 1, scheduled)
        if not starts_early:
            cycles += DEPENDENT_LOADS * L2_CYCLES + MEMORY_CYCLES - L2_CYCLES
        cycles += max(0, tiles_of_block - 2) * (MEMORY_CYCLES - L2_CYCLES)
        cycles += self.library.cycles((launch.kernel, "tile"), path, tiles_of_block, scheduled)
        # Behind the tiles: sums of warps, then what the last block does, in pieces of splits. All other instructions
        # count, also of other cases.
        behind = [i for i in kernel.instructions if i.address > tile_loop[1]]
        counter = next(index for index, i in enumerate(behind) if i.name == "ATOMG")
        end = next(index for index, i in enumerate(behind) if i.name == "EXIT" and not i.predicate)
        merges = min(splits, launch.y) > 1
        cycles += self.library.cycles((launch.kernel, "sums"), behind[:counter], splits_of_block, scheduled)
        alone = launch.threads // WARP // SCHEDULERS  # the last blocks of the items are on different multiprocessors
        pieces = math.ceil(splits / MERGED_SPLITS)
        path_of_merge = merge_of(behind[counter:end], pieces)
        merge = self.library.cycles((launch.kernel, "merge", pieces), path_of_merge, 1, alone) if merges else 0
        fences = 2 if merges else 0  # one before the counter, and the counter
        us, bound, idle_us = {}, "", {}
        for at in CASES:
            memory = self._kv_us(case, config, position, at)
            # Blocks that start early have asked for theirs in time.
            early = min(memory, GAP_US.at(at) + TAIL_US.at(at)) if starts_early and "batch" in case else 0.0
            blocks = (waves * cycles + merge) / self.gpu.cycles_per_us + fences * FENCE_US.at(at)
            blocks += (launch.blocks - live) / (gpu.multiprocessors * fitting) * EMPTY_BLOCK_US.at(at)
            us[at] = GAP_US.at(at) + max(memory - early, blocks)
            # Weights come behind the first keys and values.
            idle_us[at] = max(0.0, max(memory - early, blocks) - (memory - early) - 2 * L2_CYCLES / gpu.cycles_per_us)
            if at == "expected":
                bound = ("memory" if "batch" in case else "L2") if memory - early > blocks else "latency"
        details = {
            "live_blocks": live,
            "kv_mb": self._kv_mb(case, config, position),
            "starts_early": starts_early,
            "tiles_us": waves * cycles / self.gpu.cycles_per_us,
            "merge_us": merge / self.gpu.cycles_per_us,
        }
        return Prediction("attention", launch.kernel, launch.blocks, us, bound, details, idle_us)

    def _prompt_attention(
        self, launch: Launch, config: HiggsAudioConfig, position: int, case: dict[str, Any]
    ) -> Prediction:
        """A warp for each row. The rows of a block find each other's keys and values in the first cache."""
        kernel, gpu, warps = self.kernels[launch.kernel], self.gpu, launch.threads // WARP
        rows = case["text"] + case["audio"]

        def score(i: Instruction) -> tuple[float, ...]:
            return (i.is_tensor_core, i.is_global_load, i.name in ("LDS", "STS"))

        # The loops of a quarter of a tile, of a warp's part of a split, and of a split.
        loops = [loop for loop in kernel.loops() if any(i.is_tensor_core for i in kernel.body(loop))]
        _, part, split = sorted(loops, key=lambda loop: loop[1] - loop[0])
        of_split = [i for i in kernel.path(split, score) if not part[0] <= i.address <= part[1]]
        ahead = [i for i in kernel.instructions if i.address < split[0]]
        wait = max(index for index, i in enumerate(ahead) if i.name == "ACQBULK")
        behind = [i for i in kernel.instructions if i.address > split[1]]
        # All instructions after the loop count, also those of divisions that are seldom taken.
        of_part, fitting = kernel.path(part, score), kernel.blocks_per_multiprocessor(launch.threads, 0)
        row_blocks = []
        for first_row in reversed(range(0, rows, warps)):  # the longest first, in the middle of the prompt `position`
            tiles = math.ceil((position - rows // 2 + min(first_row + warps, rows)) / TILE_POSITIONS)
            tiles_of_split = math.ceil(tiles / min(tiles, MAX_SPLITS))
            splits = math.ceil(tiles / tiles_of_split)
            path = [*ahead[wait + 1 :], *(of_part * warps * tiles_of_split + of_split) * splits, *behind]
            key = (launch.kernel, "rows", tiles)
            row_blocks.append(self.library.cycles(key, path, 1, fitting * warps // SCHEDULERS))
        of_blocks = (cycles for cycles in row_blocks for _ in range(launch.blocks // len(row_blocks)))
        blocks = makespan(of_blocks, gpu.multiprocessors * fitting) / gpu.cycles_per_us
        us, bound = {}, ""
        for at in CASES:
            l2 = self._kv_us(case, config, position, at) / warps
            us[at] = GAP_US.at(at) + max(l2, blocks)
            if at == "expected":
                bound = "L2" if l2 > blocks else "instructions"
        details = {"kv_mb": self._kv_mb(case, config, position), "blocks_us": blocks}
        return Prediction("attention", launch.kernel, launch.blocks, us, bound, details)

    @staticmethod
    def _kv_mb(case: dict[str, Any], config: HiggsAudioConfig, position: int) -> float:
        """MB of the keys and values that the rows read."""
        rows = case.get("batch") or case["text"] + case["audio"]
        return rows * config.num_key_value_heads * (position + 1) * config.head_dim * 2 * 2 / 1e6

    def _kv_us(self, case: dict[str, Any], config: HiggsAudioConfig, position: int, at: str) -> float:
        """us to read keys and values from memory; the rows of a prompt share theirs, which stay in L2."""
        gpu = self.gpu
        bandwidth = gpu.peak_gb_per_s * gpu.read_share.at(at) if "batch" in case else gpu.l2_gb_per_s.at(at)
        return self._kv_mb(case, config, position) * 1e3 / bandwidth

    @staticmethod
    def _loads_of(kernel: Kernel, loop: tuple[int, int]) -> int:
        return sum(i.is_global_load and i.load_bytes == LOAD_BYTES for i in kernel.body(loop))


def merge_of(merge: list[Instruction], pieces: int) -> list[Instruction]:
    """The instructions of a merge without those of the pieces that a sequence does not have.

    Splits are loaded, and then added, piece by piece; before each a branch leaves for what comes behind the last one.
    """
    leaves: dict[int, list[int]] = {}
    for i in merge:
        if i.predicate and i.target is not None and i.target > i.address:
            leaves.setdefault(i.target, []).append(i.address)
    of_pieces = {to: at for to, at in leaves.items() if len(at) == MAX_SPLITS // MERGED_SPLITS}
    if len(of_pieces) != 2:
        raise ValueError(f"a merge must load and add its splits in pieces, got {len(of_pieces)} sets of branches")
    left_out = [(at[pieces], to) for to, at in of_pieces.items() if pieces < len(at)]
    return [i for i in merge if not any(begin < i.address < end for begin, end in left_out)]


def total_us(layers: int, parts: tuple[list[Prediction], list[Prediction]]) -> dict[str, float]:
    """us of a whole pass: so many layers, and the rest."""
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
    frame_us, batch_us = (total_us(layers, parts) for parts in (frame, batch))
    prompt_us = total_us(layers - 1, prompt)
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
