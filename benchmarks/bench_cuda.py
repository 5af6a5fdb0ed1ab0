"""Time everything on a GPU: GEMMs, frames by position and by batch, prompts, the audio tokenizer, the first sound.

    python -m benchmarks.tools.make_checkpoint --out /data/higgs-random
    python -m benchmarks.bench_cuda --model /data/higgs-random --json benchmarks/results/cuda.json

Frames are drawn as in use, by the model runner: graphs launched ahead of the host, which reads each frame. A time is
that of many frames over their number, and its share is of the read bandwidth measured in turns with it. transformers
runs on the same checkpoint in the same turns, eagerly and with its static cache under torch.compile. --device cpu,
with --quick, shows that all of it runs.
"""

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_frame import (
    COMPILED,
    REFERENCE,
    compiled_frames,
    frame_bytes,
    transformers_frames,
    transformers_model,
)
from benchmarks.measure import ReadBandwidth, seconds, summary, write_json
from higgs_native import HiggsAudio, HiggsAudioModel, SamplingParams, ops
from higgs_native.audio_tokenizer.decoder import StreamingDecoder
from higgs_native.audio_tokenizer.graph_decoder import WindowedDecoder
from higgs_native.convention import Convention
from higgs_native.generation.sequence import Frame
from higgs_native.generation.steps.model_runner import DecodeRow, ModelRunner
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import pages_for
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.device import checked_device
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.testing.configs import REAL_SIZE_CONFIG
from higgs_native.testing.random_checkpoint import write_demo_checkpoint


FORMATS = ("bfloat16", "float16", "fp8", "int8", "int4")
SECTIONS = ("gemm", "frame", "batch", "prompt", "audio_tokenizer", "first_sound")
TEXT = "The sun rises in the east and sets in the west."


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is timed, and how often."""

    gemms: Sequence[tuple[str, int, int]]
    rows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    positions: Sequence[int] = (256, 1024, 4096, 8000)
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    batch_position: int = 512
    prompts: Sequence[int] = (64, 256, 1024)
    decoder_frames: Sequence[int] = (4, 12, 25, 100, 250)
    frames: int = 50
    repeats: int = 15
    read_bytes: int = 4 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder with bfloat16 weights; without it a tiny one is made")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["bfloat16", "fp8", "int8", "int4"])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few and small sizes: the figures mean nothing")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = checked_device(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        if args.model is None:
            write_demo_checkpoint(Path(temporary))
        folder = Path(args.model or temporary)
        sizes = quick_sizes() if args.quick else real_sizes()
        report = run(folder, device, args.formats, args.sections, sizes, args.no_transformers)
    if args.json:
        write_json(args.json, report)


def real_sizes() -> Sizes:
    """Of the published model."""
    config = REAL_SIZE_CONFIG
    hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
    key_value = 2 * config.num_key_value_heads * config.head_dim
    heads = config.num_codebooks * config.codebook_size
    return Sizes(
        gemms=[
            ("qkv", query + key_value, hidden),
            ("o", hidden, query),
            ("gate_up", 2 * config.intermediate_size, hidden),
            ("down", hidden, config.intermediate_size),
            ("audio_head", heads, hidden),
        ]
    )


def quick_sizes() -> Sizes:
    """Small enough for any machine."""
    return Sizes(
        gemms=[("small", 96, 64)], rows=(1, 16), positions=(16,), batches=(1, 3), batch_position=16, prompts=(12,),
        decoder_frames=(4,), frames=3, repeats=2, read_bytes=8 << 20,
    )  # fmt: skip


def run(
    folder: Path,
    device: torch.device,
    formats: Sequence[str],
    sections: Sequence[str],
    sizes: Sizes,
    without_transformers: bool,
) -> dict[str, Any]:
    """Load the checkpoint in every format, time all, print and return the figures."""
    bandwidth = ReadBandwidth(sizes.read_bytes, device)
    report: dict[str, Any] = {
        "read_gb_per_s": summary([bandwidth.measure() for _ in range(sizes.repeats)], digits=1),
    }
    print(f"{report['read_gb_per_s']['median']} GB/s read")
    if "gemm" in sections:
        report["gemm"] = bench_gemms(device, sizes, bandwidth)
    engines: dict[str, HiggsAudio] = {}
    for format in formats:
        engines[format] = HiggsAudio.from_pretrained(
            folder,
            device,
            dtype="bfloat16" if format in QUANTIZED_FORMATS else format,
            quantization=format if format in QUANTIZED_FORMATS else None,
            audio_tokenizer=engines[formats[0]].audio_tokenizer if engines else None,
        )
    models = {format: engine.model for format, engine in engines.items()}
    first = engines[formats[0]]
    report["weights_gb"] = {format: round(model.nbytes / 1e9, 3) for format, model in models.items()}
    reference = None
    if not without_transformers and {"frame", "prompt"} & set(sections):
        reference = transformers_model(first.model, folder).to(device)
    timed: dict[str, Callable[[], Any]] = {
        "frame": lambda: [bench_frames(models, reference, bandwidth, position, sizes) for position in sizes.positions],
        "batch": lambda: [bench_batch(models, bandwidth, batch, sizes) for batch in sizes.batches],
        "prompt": lambda: [bench_prompt(models, reference, count, sizes) for count in sizes.prompts],
        "audio_tokenizer": lambda: bench_audio_tokenizer(first, sizes),
        "first_sound": lambda: {format: bench_first_sound(engine, sizes) for format, engine in engines.items()},
    }
    return report | {name: timed[name]() for name in sections if name in timed}


@torch.inference_mode()
def bench_gemms(device: torch.device, sizes: Sizes, bandwidth: ReadBandwidth) -> list[dict[str, Any]]:
    """Each matrix of a layer, by itself, beside torch's GEMM in bfloat16 (cuBLAS)."""
    results = []
    for name, n, k in sizes.gemms:
        # Together larger than L2.
        copies = max(1, min(8, (256 << 20) // (2 * n * k)))
        plain = [torch.randn(n, k, device=device).bfloat16() / k**0.5 for _ in range(copies)]
        packed = {format: [ops.pack_linear(weight, format=format) for weight in plain] for format in FORMATS}
        for rows in sizes.rows:
            x, out = torch.randn(rows, k, device=device), torch.empty(rows, n, device=device)
            typed = x.bfloat16()
            runs: dict[str, Callable[[], object]] = {
                format: lambda weights=weights, out=out, x=x: [ops.linear(out, x, weight) for weight in weights]
                for format, weights in packed.items()
            }
            runs["torch"] = lambda weights=plain, typed=typed: [
                torch.nn.functional.linear(typed, weight) for weight in weights
            ]
            runs = {side: graphed(function, device) for side, function in runs.items()}
            times: dict[str, list[float]] = {side: [] for side in runs}
            read = []
            for _ in range(sizes.repeats + 2):
                for side, function in runs.items():
                    times[side].append(1e6 * seconds(function) / copies)
                read.append(bandwidth.measure())
            read_rate = summary(read[2:], digits=1)
            result: dict[str, Any] = {"name": name, "shape": [n, k], "rows": rows, "read_gb_per_s": read_rate}
            for side in runs:
                us = summary(times[side][2:])
                num_bytes = packed[side][0].nbytes if side in packed else plain[0].nbytes
                share = num_bytes / us["median"] / 1e3 / read_rate["median"]
                result[side] = {"us": us, "share_of_read_bandwidth": round(share, 3)}
            results.append(result)
            print(
                f"{name:10} {rows:3} rows: "
                + ", ".join(
                    f"{side} {result[side]['us']['median']:.1f} us ({result[side]['share_of_read_bandwidth']:.0%})"
                    for side in runs
                )
            )
    return results


def graphed(function: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same work as one CUDA graph, so that launches cost nothing; on the CPU as it is."""
    if device.type != "cuda":
        return function
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    return graph.replay


@torch.inference_mode()
def frames_of_native(
    model: HiggsAudioModel, batch: int, position: int, count: int, rounds: int
) -> Callable[[], list[torch.Tensor]]:
    """Return a function that draws `count` more frames of `batch` sequences, from `position` on, `rounds` times."""
    pages = pages_for(position + count * rounds)
    runner = ModelRunner(model, 1 << (batch - 1).bit_length(), batch * pages)
    # Keys and values of a prompt: noise does as well.
    for tensor in (*runner.cache.keys, *runner.cache.values):
        tensor.normal_()
    runner.write_pages([(slot, index, slot * pages + index) for slot in range(batch) for index in range(pages)])
    for slot in range(batch):
        runner.sampler.reset_slot(slot, Convention.TRANSFORMERS, SamplingParams(temperature=1.0, seed=slot))
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(model.config.audio_stream_bos_id, (model.config.num_codebooks,), generator=generator)
    runner.begin([DecodeRow(slot, position, codes.tolist()) for slot in range(batch)])

    def draw() -> list[list[Frame]]:
        frames: list[list[Frame]] = []
        launched = 0
        while len(frames) < count:
            while launched < count and runner.in_flight < runner.max_ahead:
                runner.launch()
                launched += 1
            drawn = runner.read()
            if not all(frame.is_active for frame in drawn):
                raise RuntimeError("a sequence ended: time a checkpoint whose audio does not end")
            frames.append([frame.codes for frame in drawn])
        return frames

    return draw


@torch.inference_mode()
def bench_frames(
    models: dict[str, HiggsAudioModel], reference: Any, bandwidth: ReadBandwidth, position: int, sizes: Sizes
) -> dict[str, Any]:
    """Frames of one sequence from `position` on, beside transformers'."""
    rounds, first = 4, next(iter(models.values()))
    times: dict[str, list[float]] = {}
    read = []
    others: dict[str, Callable[[int], torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    config = first.config
    count = sizes.frames // 2 + 2
    frames = torch.randint(0, config.audio_stream_bos_id, (count, config.num_codebooks), generator=generator)
    frames = frames.to(first.device)
    if reference is not None:
        cache = first.new_cache(1, position)
        for tensor in (*cache.keys, *cache.values):
            tensor.normal_()
        others[REFERENCE] = transformers_frames(reference, cache, frames, position)
        if first.device.type == "cuda":
            others[COMPILED] = compiled_frames(reference, cache, frames, position, mode="reduce-overhead")
    draws = {format: frames_of_native(model, 1, position, sizes.frames, rounds) for format, model in models.items()}
    for index in range(rounds):
        for format, draw in draws.items():
            times.setdefault(format, []).append(1e3 * seconds(draw) / sizes.frames)
        for name, run_frame in others.items():
            for at in range(index * count // rounds, (index + 1) * count // rounds):
                times.setdefault(name, []).append(1e3 * seconds(lambda run_frame=run_frame, at=at: run_frame(at)))
        read.append(bandwidth.measure())
    result: dict[str, Any] = {"position": position, "read_gb_per_s": summary(read, digits=1)}
    for name, values in times.items():
        num_bytes = frame_bytes(models.get(name, first), position + sizes.frames * rounds // 2)
        # The first ones warm up.
        result[name] = figures(values[1 if name in models else 2 :], num_bytes, result["read_gb_per_s"])
    baselines = [result[name]["ms"]["median"] for name in others]
    for format in models:
        line = f"position {position:5}: {described(format, result[format])}"
        if baselines:
            result[format]["times_as_fast_as_transformers"] = round(min(baselines) / result[format]["ms"]["median"], 2)
            line += f", {result[format]['times_as_fast_as_transformers']:.2f} times as fast as transformers' best"
        print(line)
    return result


@torch.inference_mode()
def bench_batch(
    models: dict[str, HiggsAudioModel], bandwidth: ReadBandwidth, batch: int, sizes: Sizes
) -> dict[str, Any]:
    """Frames of `batch` sequences side by side."""
    rounds, position = 3, sizes.batch_position
    result: dict[str, Any] = {"batch": batch, "position": position}
    for format, model in models.items():
        draw = frames_of_native(model, batch, position, sizes.frames, rounds)
        times, read = [], []
        for _ in range(rounds):
            times.append(1e3 * seconds(draw) / sizes.frames)
            read.append(bandwidth.measure())
        del draw  # frees its cache
        middle = position + sizes.frames * rounds // 2
        cache = frame_bytes(model, middle) - frame_bytes(model, 0)
        rate = summary(read, digits=1)
        result[format] = figures(times[1:], frame_bytes(model, 0) + batch * cache, rate)
        result[format]["read_gb_per_s"] = rate
        result[format]["audio_s_per_s"] = round(batch * 40 / result[format]["ms"]["median"], 1)
        print(
            f"batch {batch:3}: {described(format, result[format])}, {result[format]['audio_s_per_s']} s of audio a s"
        )
    return result


def figures(times: Sequence[float], num_bytes: int, read: dict[str, float]) -> dict[str, Any]:
    """The figures of times in milliseconds, in each of which `num_bytes` must be read."""
    ms = summary(list(times))
    rate = num_bytes / ms["median"] / 1e6
    return {
        "ms": ms,
        "gb": round(num_bytes / 1e9, 3),
        "gb_per_s": round(rate, 1),
        "share_of_read_bandwidth": round(rate / read["median"], 3),
    }


def described(name: str, result: dict[str, Any]) -> str:
    return (
        f"{name:10} {result['ms']['median']:7.3f} ms a frame, {result['gb_per_s']:7.1f} GB/s, "
        f"{result['share_of_read_bandwidth']:4.0%} of reading"
    )


@torch.inference_mode()
def bench_prompt(models: dict[str, LanguageModel], reference: Any, count: int, sizes: Sizes) -> dict[str, Any]:
    """A prompt of `count` positions, a third of them text, into an empty cache, and the first frame's logits."""
    first = next(iter(models.values()))
    config, text = first.config, count // 3
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (text,), generator=generator)
    frames = torch.randint(0, config.audio_stream_bos_id, (count - text, config.num_codebooks), generator=generator)

    rows = Batch.text_then_audio([(ids.tolist(), frames.T)], first.device)
    rows.kept_rows = range(count - 1, count)  # the engine keeps what it draws from
    runs: dict[str, Callable[[], object]] = {}
    for format, model in models.items():
        cache = model.new_cache(1, count)
        runs[format] = lambda model=model, cache=cache: model.audio_logits(model.forward(rows, cache)[-1:])
    if reference is not None:
        placeholders = torch.full((count - text,), config.audio_out_token_id)
        inputs = {
            "input_ids": torch.cat([ids, placeholders])[None].to(first.device),
            "audio_input_ids": frames[None].to(first.device),
        }
        runs[REFERENCE] = lambda: reference(**inputs, use_cache=True, logits_to_keep=1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(sizes.repeats + 2):
        for name, run_prompt in runs.items():
            times[name].append(1e3 * seconds(run_prompt))
    result: dict[str, Any] = {"positions": count, "text": text}
    result |= {name: {"ms": summary(values[2:])} for name, values in times.items()}
    print(f"prompt of {count}: " + ", ".join(f"{name} {result[name]['ms']['median']:.2f} ms" for name in runs))
    return result


def bench_audio_tokenizer(engine: HiggsAudio, sizes: Sizes) -> dict[str, Any]:
    """Decoding codes, all of an audio and a chunk of a stream, and encoding five seconds of audio.

    On a GPU the audio tokenizer decodes by windows; beside it the decoder that keeps the ends of its layers' inputs.
    """
    tokenizer = engine.audio_tokenizer
    weights, config = tokenizer.named_weights(), tokenizer.config
    decoders: dict[str, Callable[[], StreamingDecoder | WindowedDecoder]] = {
        "tokenizer": tokenizer.streaming_decoder,
        "streaming": lambda: StreamingDecoder(weights, config),
    }
    before = torch.zeros(config.num_codebooks, 2 * config.decoder_context, dtype=torch.int64)
    report: dict[str, Any] = {}
    for kind in ("decode", "chunk"):
        report[kind] = []
        for frames in sizes.decoder_frames:
            codes = torch.randint(config.codebook_size, (config.num_codebooks, frames))
            times: dict[str, list[float]] = {name: [] for name in decoders}
            for _ in range(sizes.repeats + 2):
                for name, new_decoder in decoders.items():
                    decoder = new_decoder()
                    if kind == "chunk":
                        decoder.decode(before)
                    decode = functools.partial(decoder.decode, codes, is_last=kind == "decode")
                    times[name].append(1e3 * seconds(decode))
            ms = {name: summary(values[2:]) for name, values in times.items()}
            report[kind].append({"frames": frames, "ms": ms})
            print(f"{kind} {frames} frames: " + ", ".join(f"{name} {ms[name]['median']:.2f} ms" for name in ms))
    audio = torch.randn(5 * tokenizer.sampling_rate) / 10

    def encode() -> None:
        audio[0] += 1e-6  # another audio each time, since codes are kept
        tokenizer.encode(audio, tokenizer.sampling_rate)

    times = [1e3 * seconds(encode) for _ in range(sizes.repeats + 2)][2:]
    report["encode"] = {"seconds": 5, "ms": summary(times)}
    print(f"encode 5 s: {summary(times)['median']:.2f} ms")
    return report


def bench_first_sound(engine: HiggsAudio, sizes: Sizes) -> dict[str, Any]:
    """From the call to the first four frames of sound, exact and with as little lookahead as can be."""
    engine.model.engine.prefix_bytes = 0  # each call computes its prompt
    report = {}
    for low_latency in (0, engine.audio_tokenizer.context_frames):
        times = []
        for seed in range(sizes.repeats + 2):
            stream = engine.stream(TEXT, seed=seed, max_new_tokens=40, first_chunk_frames=4, low_latency=low_latency)
            for _ in stream:
                break
            times.append(1e3 * (stream.first_audio_seconds or float("nan")))
        report[f"low_latency={low_latency}"] = {"ms": summary(times[2:])}
        print(f"first 4 frames of sound, low_latency={low_latency}: {summary(times[2:])['median']:.1f} ms")
    return report


if __name__ == "__main__":
    main()
