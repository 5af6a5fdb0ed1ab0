"""Time one audio frame and a prompt's prefill in each weight format, beside transformers on the same checkpoint.

    python -m benchmarks.tools.make_checkpoint --out /data/higgs-random --layers 8
    python -m benchmarks.bench_frame --model /data/higgs-random --json benchmarks/results/bench_frame.json

A frame is the forward pass of one audio row and the audio head, without sampling. The caches hold random keys and
values up to the position, so no prompt is computed. The formats take turns, frame by frame, and the read bandwidth is
measured in each turn. All formats and transformers' model are in memory at once: use fewer layers if it is short.
transformers can't read a checkpoint in the original layout, which is then timed without it. A Higgs TTS 3
(`make_checkpoint --layout higgs_tts_3`) is timed beside transformers' Qwen3 with its embeddings and its head.
"""

import argparse
import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ReadBandwidth, in_format, seconds, share_of_reading, summary, write_json
from benchmarks.tools.qwen3_reference import Qwen3Reference
from benchmarks.tools.transformers_baseline import import_transformers
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.convention import Convention
from higgs_native.model.batch import Batch
from higgs_native.model.kv_cache import KVCache
from higgs_native.model.transformer import LanguageModel
from higgs_native.ops.formats import WEIGHT_FORMATS


REFERENCE = "transformers"
COMPILED = "transformers, compiled"


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a Hub name")
    parser.add_argument("--formats", nargs="+", choices=WEIGHT_FORMATS, default=["bfloat16", "int8", "int4"])
    parser.add_argument("--positions", type=int, nargs="+", default=[256, 512, 1024, 4096])
    parser.add_argument("--frames", type=int, default=20, help="frames to time at each position")
    parser.add_argument("--prefill", type=int, nargs=2, default=[100, 200], metavar=("TEXT", "AUDIO"))
    parser.add_argument("--prefill-repeats", type=int, default=3)
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--compile", action="store_true", help="time transformers with torch.compile too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = run(
        resolve_folder(args.model),
        args.formats,
        args.positions,
        args.frames,
        args.prefill,
        args.prefill_repeats,
        not args.no_transformers,
        args.compile,
    )
    if args.json:
        write_json(args.json, report)


def run(
    folder: Path,
    formats: Sequence[str],
    positions: Sequence[int],
    frames: int,
    prefill: Sequence[int],
    prefill_repeats: int,
    with_transformers: bool,
    with_compile: bool,
) -> dict[str, Any]:
    """Load the checkpoint in each format, time all; print and return the figures."""
    natives, load_seconds = {}, {}
    for format in formats:
        start = time.perf_counter()
        natives[format] = LanguageModel.from_pretrained(folder, **in_format(format))
        load_seconds[format] = round(time.perf_counter() - start, 1)
    reference = None
    if with_transformers and natives[formats[0]].config.convention is not Convention.BOSON:
        start = time.perf_counter()
        reference = transformers_model(natives[formats[0]], folder)
        load_seconds[REFERENCE] = round(time.perf_counter() - start, 1)
    gc.collect()
    bandwidth = ReadBandwidth()
    print(f"loaded in {load_seconds} s; {torch.get_num_threads()} threads")
    return {
        "model": {
            "layers": natives[formats[0]].config.num_hidden_layers,
            "hidden_size": natives[formats[0]].config.hidden_size,
        },
        "weights_gb": {format: round(model.nbytes / 1e9, 3) for format, model in natives.items()},
        "load_s": load_seconds,
        "frame": [
            bench_frame(natives, reference, bandwidth, position, frames, with_compile) for position in positions
        ],
        "prefill": bench_prefill(natives, reference, bandwidth, *prefill, prefill_repeats, with_compile),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def frame_bytes(model: LanguageModel, position: int) -> int:
    """Bytes that a frame must read: weights of the audio path, keys and values of `position` positions."""
    config = model.config
    layers = [layer for layer in model.layers if not layer.skips_audio]
    weights = [model.audio_head, *(w for x in layers for w in (x.qkv, x.o, x.audio.gate_up, x.audio.down))]
    cache = 2 * len(layers) * position * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    return sum(weight.nbytes for weight in weights) + cache


@torch.inference_mode()
def bench_frame(
    natives: dict[str, LanguageModel],
    reference: Any,
    bandwidth: ReadBandwidth,
    position: int,
    count: int,
    with_compile: bool,
) -> dict[str, Any]:
    """Time `count` frames, the first at `position`."""
    first = next(iter(natives.values()))
    config = first.config
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, config.audio_stream_bos_id, (count + 2, config.num_codebooks), generator=generator)
    runs: dict[str, Callable[[int], torch.Tensor]] = {}
    for format, native in natives.items():
        cache = native.new_cache(1, position + len(frames))
        filling = torch.Generator().manual_seed(0)
        for tensor in (*cache.keys, *cache.values):
            tensor.normal_(generator=filling)
        if not runs and reference is not None:
            runs[REFERENCE] = transformers_frames(reference, cache, frames, position)
            if with_compile:
                runs[COMPILED] = compiled_frames(reference, cache, frames, position)
        runs[format] = lambda index, native=native, cache=cache: native_frame(
            native, cache, frames[index], position + index
        )
    times: dict[str, list[float]] = {name: [] for name in runs}
    read = []
    for index in range(len(frames)):
        logits = {}
        for name, run_frame in runs.items():
            start = time.perf_counter()
            logits[name] = run_frame(index)
            times[name].append(1e3 * (time.perf_counter() - start))
        read.append(bandwidth.measure())
        if index == 0:
            check_agreement(logits)
    # The first two frames warm up.
    times = {name: values[2:] for name, values in times.items()}
    read = read[2:]
    result: dict[str, Any] = {"position": position, "read_gb_per_s": summary(read, digits=1)}
    for name in runs:
        num_bytes = frame_bytes(natives.get(name, first), position + len(frames) // 2)
        ms = summary(times[name])
        rate = num_bytes / ms["median"] / 1e6
        result[name] = {
            "ms": ms,
            "gb": round(num_bytes / 1e9, 3),
            "gb_per_s": round(rate, 2),
            "share_of_read_bandwidth": share_of_reading(num_bytes, [ms / 1e3 for ms in times[name]], read),
        }
        ratio = None
        if reference is not None and name in natives:
            ratio = times_as_fast(times, name)
            result[name]["times_as_fast_as_transformers"] = ratio
        print(
            f"position {position:5}: {name:12} {ms['median']:8.2f} ms per frame, {rate:5.1f} GB/s, "
            f"{result[name]['share_of_read_bandwidth']:4.0%} of bandwidth"
            + (f", {ratio:.2f} times as fast as transformers" if ratio else "")
        )
    return result


@torch.inference_mode()
def bench_prefill(
    natives: dict[str, LanguageModel],
    reference: Any,
    bandwidth: ReadBandwidth,
    text: int,
    audio: int,
    repeats: int,
    with_compile: bool,
) -> dict[str, Any]:
    """Time the prefill of `text` tokens and `audio` frames into an empty cache."""
    first = next(iter(natives.values()))
    config = first.config
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (text,), generator=generator)
    frames = torch.randint(0, config.audio_stream_bos_id, (audio, config.num_codebooks), generator=generator)
    rows = Batch.text_then_audio([(ids.tolist(), frames.T)])
    rows.kept_rows = range(text + audio - 1, text + audio)  # the engine keeps what it draws from
    runs: dict[str, Callable[[], object]] = {}
    if reference is not None:
        placeholders = torch.full((audio,), config.audio_out_token_id)
        inputs = {"input_ids": torch.cat([ids, placeholders])[None], "audio_input_ids": frames[None]}
        runs[REFERENCE] = lambda: reference(**inputs, use_cache=True, logits_to_keep=1)
        if with_compile:
            compiled = torch.compile(reference.forward, dynamic=False)
            runs[COMPILED] = lambda: compiled(**inputs, use_cache=True, logits_to_keep=1)
    for format, native in natives.items():
        runs[format] = lambda native=native: native.audio_logits(
            native.forward(rows, native.new_cache(1, text + audio))[-1:]
        )
    times: dict[str, list[float]] = {name: [] for name in runs}
    read = []
    for _ in range(repeats + 2):  # the first two warm up
        for name, run_prompt in runs.items():
            times[name].append(seconds(run_prompt))
        read.append(bandwidth.measure())
    times = {name: values[2:] for name, values in times.items()}
    read = read[2:]
    result: dict[str, Any] = {"text_rows": text, "audio_rows": audio, "read_gb_per_s": summary(read, digits=1)}
    for name in runs:
        measured = summary(times[name], digits=6)
        rate = (text + audio) / measured["median"]
        num_bytes = prompt_bytes(natives.get(name, first))
        result[name] = {
            "s": measured,
            "rows_per_s": round(rate, 1),
            "gb": round(num_bytes / 1e9, 3),
            "share_of_read_bandwidth": share_of_reading(num_bytes, times[name], read),
        }
        if reference is not None and name in natives:
            result[name]["times_as_fast_as_transformers"] = times_as_fast(times, name)
        print(f"prefill of {text} + {audio} rows: {name:12} {measured['median']:7.3f} s, {rate:6.1f} rows/s")
    return result


def times_as_fast(times: dict[str, list[float]], name: str) -> float:
    """Speedup of `name` over the faster mode of transformers: the median over the rounds."""
    best = min((times[mode] for mode in (REFERENCE, COMPILED) if mode in times), key=statistics.median)
    return round(statistics.median(theirs / ours for theirs, ours in zip(best, times[name], strict=True)), 2)


def prompt_bytes(model: LanguageModel) -> int:
    """Bytes that a prompt of text and audio must read: the weights of the layers and of the audio head."""
    attention = [w for layer in model.layers for w in (layer.qkv, layer.o)]
    paths = [w for layer in model.layers for path in (layer.text, layer.audio) for w in (path.gate_up, path.down)]
    return sum({id(weight): weight.nbytes for weight in (model.audio_head, *attention, *paths)}.values())


def native_frame(model: LanguageModel, cache: KVCache, codes: torch.Tensor, position: int) -> torch.Tensor:
    """Logits [codebooks, codebook_size] of the frame `codes` [codebooks] at `position`."""
    none = torch.empty(0, dtype=torch.int32)
    rows = Batch(
        token_ids=none,
        codes=codes[None].int(),
        slots=torch.zeros(1, dtype=torch.int32),
        positions=torch.tensor([position], dtype=torch.int32),
        text_positions=none,
    )
    return model.audio_logits(model.forward(rows, cache))[0]


def transformers_model(native: LanguageModel, folder: Path) -> Any:
    """transformers' model of the same checkpoint and dtype."""
    transformers = import_transformers()
    if native.config.convention is Convention.HIGGS_TTS_3:
        return Qwen3Reference(folder, native.config, native.dtype).eval()
    return transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, dtype=native.dtype).eval()


def _positions(pages: torch.Tensor, count: int) -> torch.Tensor:
    """The first positions [1, KV heads, count, head_dim] of a new cache's only sequence."""
    return pages.transpose(0, 1).flatten(1, 2)[None, :, :count]


def transformers_frames(
    model: Any, cache: KVCache, frames: torch.Tensor, position: int
) -> Callable[[int], torch.Tensor]:
    """A function from a frame's index to transformers' logits, with the same contents in its cache."""
    import transformers

    past = transformers.DynamicCache(config=model.config)
    for index, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        past.update(_positions(keys, position).clone(), _positions(values, position).clone(), index)

    def run(index: int) -> torch.Tensor:
        logits = model(audio_input_ids=frames[None, index : index + 1], past_key_values=past, use_cache=True).logits
        return logits.view(model.config.num_codebooks, model.config.codebook_size).float()

    return run


def compiled_frames(
    model: Any, cache: KVCache, frames: torch.Tensor, position: int, mode: str | None = None
) -> Callable[[int], torch.Tensor]:
    """The same with transformers' static cache, compiled by torch.compile in `mode`."""
    import transformers

    past = transformers.StaticCache(config=model.config, max_cache_len=position + len(frames))
    # A prompt sets the length of the cache; its keys and values are then replaced.
    prompt = torch.zeros(1, position, model.config.num_codebooks, dtype=torch.long, device=model.device)
    model(audio_input_ids=prompt, past_key_values=past, use_cache=True, logits_to_keep=1)
    for layer, keys, values in zip(past.layers, cache.keys, cache.values, strict=True):
        layer.keys[:, :, :position] = _positions(keys, position)
        layer.values[:, :, :position] = _positions(values, position)
    forward = torch.compile(model.forward, dynamic=False, mode=mode)

    def run(index: int) -> torch.Tensor:
        logits = forward(audio_input_ids=frames[None, index : index + 1], past_key_values=past, use_cache=True).logits
        return logits.view(model.config.num_codebooks, model.config.codebook_size).float()

    return run


def check_agreement(logits: dict[str, torch.Tensor]) -> None:
    """Refuse to compare the speed of models that compute different things."""
    expected = logits.get(REFERENCE, next(iter(logits.values())))
    for name, ours in logits.items():
        error = float((ours - expected).std() / expected.std())
        # Formats change random weights by about a tenth (int4) or a fortieth (fp8). The errors of 36 layers add up to
        # about 5 times that; unrelated logits differ by 140 %.
        if not error < {"int4": 0.7, "fp8": 0.3}.get(name, 0.1):
            raise RuntimeError(
                f"the logits of {name} must equal {REFERENCE}'s, got a difference of {error:.0%} of their deviation"
            )


if __name__ == "__main__":
    main()
