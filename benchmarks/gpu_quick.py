"""The facts of a short run on a GPU, in the order of their worth, each flushed to a file of JSON lines at once.

    python -m benchmarks.gpu_quick facts.jsonl machine operators frames --formats bfloat16 int4
    python -m benchmarks.gpu_quick facts.jsonl --check

Weights are drawn on the GPU at the published model's size, so nothing is read from disk or written to it. A section
that fails becomes a fact of kind `failure`, and the next one runs. --rehearse runs the same code on a CPU at toy size:
its facts have all fields, and its figures mean nothing. --check fails unless every kind of fact is there. gpu_quick.sh
runs all of it within the limits of a short loan.
"""

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_cuda import frames_of_native
from benchmarks.measure import ReadBandwidth, commit, seconds, synchronize
from higgs_native import HiggsAudioModel, ops
from higgs_native.checkpoint.config import HiggsAudioConfig
from higgs_native.checkpoint.language_model import AUDIO_LM_HEAD, expected_tensors
from higgs_native.checkpoint.quantization import Quantization
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import PAGE_SIZE, pages_for
from higgs_native.testing.configs import DEMO_CONFIG, REAL_SIZE_CONFIG


FIELDS = {
    "machine": (
        "torch", "cuda", "commit", "cores", "gpu", "driver", "clocks", "multiprocessors", "l2_bytes", "free_bytes",
        "dependent_launches",
    ),
    "read_bandwidth": ("gb_per_s",),
    "operator": ("op", "shape", "format", "error", "repeats"),
    "model": ("format", "seconds", "gb"),
    "same_codes": ("format", "dependent_launches", "same", "last_codes"),
    "frame": ("format", "position", "dependent_launches", "ms"),
    "kernel": ("format", "name", "count", "median_us", "min_us", "total_us"),
    "trace": ("format", "spans"),
    "prompt": ("format", "positions", "warpgroups", "ms"),
    "batch": ("format", "batch", "ms", "audio_s_per_s"),
    "failure": ("section", "format", "message"),
}  # fmt: skip
"""The kinds of facts and their fields; a fact also has `kind`, and `t`, the seconds since the process started."""

FORMATS = ("float32", "bfloat16", "float16", "fp8", "int8", "int4")
MODEL_FORMATS = ("bfloat16", "int8", "int4", "fp8")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The cases to measure, and the repetitions of each."""

    config: HiggsAudioConfig = REAL_SIZE_CONFIG
    rows: Sequence[int] = (1, 5, 8, 9, 33, 64, 250)
    positions: Sequence[int] = (256, 1024, 4096, 7900)
    profiled_position: int = 1024
    batches: Sequence[int] = (8, 16, 64)
    batch_position: int = 512
    prompts: Sequence[int] = (64, 250, 1024)
    cache: int = 4096
    max_cache_length: int = 8192
    frames: int = 50
    rounds: int = 4
    read_bytes: int = 4 << 30


TOY_SIZES = Sizes(
    config=DEMO_CONFIG, rows=(1, 9), positions=(8,), profiled_position=8, batches=(2,), batch_position=8,
    prompts=(12,), cache=64, max_cache_length=256, frames=2, rounds=2, read_bytes=8 << 20,
)  # fmt: skip


class Facts:
    """A file of facts, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._start = time.perf_counter()

    def add(self, kind: str, **fields: Any) -> None:
        """Write a fact; it is on the disk on return."""
        if set(fields) != set(FIELDS[kind]):
            raise ValueError(f"fields of {kind} must be {sorted(FIELDS[kind])}, got {sorted(fields)}")
        line = json.dumps({"kind": kind, **fields, "t": round(time.perf_counter() - self._start, 1)})
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(line, flush=True)


class RandomWeights:
    """Weights drawn where they are used; implements `higgs_native.model.weights.Weights`. Audio does not end."""

    dtype = torch.bfloat16

    def __init__(self, config: HiggsAudioConfig, format: str | None, device: torch.device) -> None:
        self.quantization = Quantization.parse(format)
        self._config, self._device = config, device
        self._shapes = expected_tensors(config)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def tensor(self, name: str) -> torch.Tensor:
        """A table, or a norm's weight."""
        drawn = torch.randn(self._shapes[name], device=self._device)
        return (1 + 0.1 * drawn if drawn.dim() == 1 else drawn).to(self.dtype)

    def linear(self, part: str, name: str, *names: str) -> ops.PackedWeight:
        """Matrices, concatenated and packed."""
        matrices = [self._matrix(matrix) for matrix in names or (name,)]
        if name == AUDIO_LM_HEAD:
            matrices[0][self._config.audio_stream_eos_id :: self._config.codebook_size] = 0
        return ops.pack_linear(*matrices, format=getattr(self.quantization, part))

    def gate_up(self, part: str, name: str, gate: str, up: str) -> ops.PackedWeight:
        """The gate and up projections, packed together."""
        return ops.pack_gate_up(self._matrix(gate), self._matrix(up), format=getattr(self.quantization, part))

    def _matrix(self, name: str) -> torch.Tensor:
        n, k = self._shapes[name]
        return (torch.randn(n, k, device=self._device) / k**0.5).to(self.dtype)


class Run:
    """The sections of a run."""

    def __init__(self, facts: Facts, device: torch.device, sizes: Sizes) -> None:
        self._facts, self._device, self._sizes = facts, device, sizes
        self._dependent = os.environ.get("HIGGS_NATIVE_DEPENDENT_LAUNCHES", "1") != "0"
        self._warpgroups = os.environ.get("HIGGS_NATIVE_WARPGROUPS", "1") != "0"

    def machine(self) -> None:
        """Record the device, driver, torch and commit that the figures depend on."""
        on_gpu = self._device.type == "cuda"
        properties = torch.cuda.get_device_properties(self._device) if on_gpu else None
        driver, _, clocks = _nvidia_smi("driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu").partition(
            ","
        )
        self._facts.add(
            "machine",
            torch=torch.__version__,
            cuda=torch.version.cuda,
            commit=commit(),
            cores=os.cpu_count(),
            gpu=properties and properties.name,
            driver=driver,
            clocks=clocks.strip(),
            multiprocessors=properties and properties.multi_processor_count,
            l2_bytes=properties and properties.L2_cache_size,
            free_bytes=torch.cuda.mem_get_info(self._device)[0] if on_gpu else None,
            dependent_launches=self._dependent,
        )
        bandwidth = ReadBandwidth(self._sizes.read_bytes, self._device)
        self._facts.add("read_bandwidth", gb_per_s=round(max(bandwidth.measure() for _ in range(8)), 1))

    @torch.inference_mode()
    def operators(self) -> None:
        """Operators of a frame at real shapes, against float64: small tests never choose their kernels."""
        config = self._sizes.config
        for n, k in (
            (config.hidden_size, config.intermediate_size),
            (2 * config.intermediate_size, config.hidden_size),
            (config.num_codebooks * config.codebook_size, config.hidden_size),
        ):
            weight = torch.randn(n, k, device=self._device) / k**0.5
            for format in FORMATS:
                packed = ops.pack_linear(weight, format=format)
                for rows in self._sizes.rows:
                    if format != "float32" or rows <= 9:
                        self._linear(format, weight, packed, rows)
        for format in FORMATS[1:]:
            self._dual_ffn(format)
        for rows, position in ((1, 0), (1, 63), (1, -1), (3, 511), (64, 511), (70, 100)):
            self._attention(rows, position % self._sizes.cache)

    def _linear(self, format: str, weight: torch.Tensor, packed: ops.PackedWeight, rows: int) -> None:
        n, k = weight.shape
        x, residual = torch.randn(rows, k, device=self._device), torch.randn(rows, n, device=self._device)
        expected = x.double() @ weight.double().T + residual.double()
        self._compare("linear", [rows, n, k], format, expected, lambda out: ops.linear(out, x, packed, residual))

    def _dual_ffn(self, format: str) -> None:
        width, inner = self._sizes.config.hidden_size, self._sizes.config.intermediate_size
        gate, up = (torch.randn(inner, width, device=self._device) / width**0.5 for _ in range(2))
        down = torch.randn(width, inner, device=self._device) / inner**0.5
        norm = 1 + 0.1 * torch.randn(width, device=self._device)
        weights = norm, ops.pack_gate_up(gate, up, format=format), ops.pack_linear(down, format=format)
        for rows in self._sizes.rows:
            x, text = torch.randn(rows, width, device=self._device), rows // 3
            z = x.double() * (x.double().square().mean(1, keepdim=True) + 1e-5).rsqrt() * norm.double()
            inner_states = torch.nn.functional.silu(z @ gate.double().T) * (z @ up.double().T)
            self._compare(
                "dual_ffn",
                [rows, width, inner],
                format,
                x.double() + inner_states @ down.double().T,
                lambda out, x=x, text=text: ops.dual_ffn(out, x, *weights, *weights, 1e-5, text),
            )

    def _attention(self, rows: int, position: int) -> None:
        config, count = self._sizes.config, position + 1
        pages = pages_for(self._sizes.cache)
        shape = rows * pages, config.num_key_value_heads, PAGE_SIZE, config.head_dim
        keys, values = (torch.randn(shape, device=self._device, dtype=torch.bfloat16) for _ in range(2))
        page_table = torch.randperm(rows * pages, device=self._device).int().view(rows, pages)
        query = torch.randn(rows, config.num_attention_heads * config.head_dim, device=self._device)
        slots = torch.arange(rows, dtype=torch.int32, device=self._device)
        positions = torch.full_like(slots, position)
        group = config.num_attention_heads // config.num_key_value_heads
        # From [rows, pages, KV heads, page size, head_dim].
        k, v = (
            cache[page_table.long()].transpose(1, 2).flatten(2, 3)[:, :, :count].double() for cache in (keys, values)
        )
        k, v = (cache.repeat_interleave(group, 1) for cache in (k, v))
        heads = query.double().view(rows, config.num_attention_heads, 1, config.head_dim)
        expected = torch.nn.functional.scaled_dot_product_attention(heads, k, v).reshape(rows, -1)
        self._compare(
            "attention",
            [*shape, position],
            "bfloat16",
            expected,
            lambda out: ops.attention(out, query, keys, values, page_table, slots, positions, config.head_dim**-0.5),
        )

    def _compare(
        self, op: str, shape: list[int], format: str, expected: torch.Tensor, run: Callable[[torch.Tensor], None]
    ) -> None:
        """Run an operator three times: its relative error, and whether its bits repeat."""
        outs = []
        for _ in range(3):
            outs.append(torch.full(expected.shape, torch.nan, device=self._device))
            run(outs[-1])
        error = float((outs[0].double() - expected).norm() / expected.norm())
        self._facts.add(
            "operator",
            op=op,
            shape=shape,
            format=format,
            error=error,
            repeats=all(torch.equal(outs[0], out) for out in outs[1:]),
        )

    @torch.inference_mode()
    def model(self, format: str) -> HiggsAudioModel:
        """Make a model of a format."""
        start = time.perf_counter()
        weights = RandomWeights(self._sizes.config, None if format == "bfloat16" else format, self._device)
        model = HiggsAudioModel(self._sizes.config, weights, None, self._device, self._sizes.max_cache_length)
        synchronize()
        self._facts.add(
            "model", format=format, seconds=round(time.perf_counter() - start, 1), gb=round(model.nbytes / 1e9, 3)
        )
        return model

    @torch.inference_mode()
    def same_codes(self, model: HiggsAudioModel, format: str) -> None:
        """The same frames four times: a race, of graphs and of dependent launches too, would change codes."""
        drawn = []
        for _ in range(4):
            torch.manual_seed(1)  # of the keys and values before
            draw = frames_of_native(model, 1, self._sizes.positions[0], self._sizes.frames, 1)
            drawn.append(draw())
        self._facts.add(
            "same_codes",
            format=format,
            dependent_launches=self._dependent,
            same=all(codes == drawn[0] for codes in drawn[1:]),
            last_codes=drawn[0][-1][0],
        )

    @torch.inference_mode()
    def frames(self, model: HiggsAudioModel, format: str) -> None:
        """A frame of one sequence, by position."""
        for position in self._sizes.positions:
            self._facts.add(
                "frame",
                format=format,
                position=position,
                dependent_launches=self._dependent,
                ms=self._frame_times(model, 1, position),
            )

    @torch.inference_mode()
    def batches(self, model: HiggsAudioModel, format: str) -> None:
        """A frame of several sequences side by side."""
        for batch in self._sizes.batches:
            ms = self._frame_times(model, batch, self._sizes.batch_position)
            self._facts.add(
                "batch", format=format, batch=batch, ms=ms, audio_s_per_s=round(batch * 40 / statistics.median(ms), 1)
            )

    def _frame_times(self, model: HiggsAudioModel, batch: int, position: int) -> list[float]:
        """ms per frame in each round; the first round warms up and is left out."""
        frames, rounds = self._sizes.frames, self._sizes.rounds
        draw = frames_of_native(model, batch, position, frames, rounds)
        return [round(1e3 * seconds(draw) / frames, 4) for _ in range(rounds)][1:]

    @torch.inference_mode()
    def prompts(self, model: HiggsAudioModel, format: str) -> None:
        """A prompt: a third text, the rest a recording's codes."""
        config = self._sizes.config
        for positions in self._sizes.prompts:
            text = positions // 3
            codes = torch.randint(config.audio_stream_bos_id, (config.num_codebooks, positions - text))
            batch = Batch.text_then_audio([([1] * text, codes)], self._device)
            batch.kept_rows = range(positions - 1, positions)  # the engine keeps what it draws from
            cache = model.new_cache(1, positions)

            def run(batch: Batch = batch, cache: Any = cache) -> None:
                model.audio_logits(model.forward(batch, cache)[-1:])

            ms = [round(1e3 * seconds(run), 3) for _ in range(self._sizes.rounds + 1)][1:]
            self._facts.add("prompt", format=format, positions=positions, warpgroups=self._warpgroups, ms=ms)

    @torch.inference_mode()
    def kernels(self, model: HiggsAudioModel, format: str) -> None:
        """The time of each kernel of a frame, and the gaps between them, in replays of its graph."""
        on_gpu = self._device.type == "cuda"
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        draw = frames_of_native(model, 1, self._sizes.profiled_position, self._sizes.frames, 2)
        draw()
        with profile(activities=[activity]) as profiled:
            draw()
        device_type = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name.split("(")[0][-60:])
            for event in profiled.events()
            if event.device_type == device_type
        )
        by_name: dict[str, list[float]] = {}
        for start, end, name in spans:
            by_name.setdefault(name, []).append(end - start)
        for name, us in sorted(by_name.items(), key=lambda item: -sum(item[1])):
            self._facts.add(
                "kernel",
                format=format,
                name=name,
                count=len(us),
                median_us=round(statistics.median(us), 2),
                min_us=round(min(us), 2),
                total_us=round(sum(us), 1),
            )
        # The middle of the run: about two layers.
        middle = spans[len(spans) // 2 :][:16]
        self._facts.add(
            "trace",
            format=format,
            spans=[(round(start - middle[0][0], 2), round(end - start, 2), name) for start, end, name in middle],
        )


SECTIONS = ("machine", "operators")
MODEL_SECTIONS = ("same_codes", "frames", "kernels", "prompts", "batches")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_quick", description=__doc__.splitlines()[0])
    parser.add_argument("facts", type=Path, help="the file that facts are appended to")
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(SECTIONS + MODEL_SECTIONS))
    parser.add_argument("--formats", nargs="+", choices=MODEL_FORMATS, default=list(MODEL_FORMATS))
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at toy size")
    parser.add_argument(
        "--check", action="store_true", help="fail unless all kinds of facts are there, and no failure"
    )
    args = parser.parse_args()
    unknown = set(args.sections) - {*SECTIONS, *MODEL_SECTIONS}
    if unknown:
        parser.error(
            f"section must be one of {', '.join(SECTIONS + MODEL_SECTIONS)}, got {', '.join(sorted(unknown))}"
        )
    if args.check:
        sys.exit(check(args.facts))
    device = torch.device("cpu" if args.rehearse else "cuda")
    facts = Facts(args.facts)
    run = Run(facts, device, TOY_SIZES if args.rehearse else Sizes())

    def attempt(section: str, format: str | None, *arguments: Any) -> Any:
        try:
            return getattr(run, section)(*arguments)
        except Exception:
            facts.add("failure", section=section, format=format, message=traceback.format_exc()[-1500:])
            return None

    for section in SECTIONS:
        if section in args.sections:
            attempt(section, None)
    wanted = [section for section in MODEL_SECTIONS if section in args.sections]
    for format in args.formats if wanted else ():
        model = attempt("model", format, format)
        for section in wanted if model is not None else ():
            attempt(section, format, model, format)
        # One model at a time: four don't fit beside their caches.
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def check(path: Path) -> int:
    """Print what is missing from the facts and what failed; return 1 if there is any."""
    facts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    problems: Iterable[str] = [
        *(
            f"no fact of kind {kind}"
            for kind in FIELDS
            if kind != "failure" and kind not in {f["kind"] for f in facts}
        ),
        *(f"{f['section']} ({f['format']}): {f['message']}" for f in facts if f["kind"] == "failure"),
        *(f"bits differ: {f}" for f in facts if not f.get("repeats", True) or not f.get("same", True)),
    ]
    for problem in problems:
        print(problem)
    print(f"{path}: {len(facts)} facts, {len(problems)} problems")
    return 1 if problems else 0


def _nvidia_smi(query: str) -> str:
    """The driver's report on the first GPU; empty without a GPU."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    main()
