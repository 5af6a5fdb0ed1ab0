"""Time one audio frame and a prompt's prefill, beside transformers on the same weights in the same process.

    python benchmarks/make_checkpoint.py --out /data/higgs-random
    python benchmarks/bench_frame.py --model /data/higgs-random --json benchmarks/results/bench_frame.json

A frame is the forward pass of one audio row and the audio head; drawing the codes is left out on both sides. Caches
are filled with random keys and values up to the position, so no prompt needs to be computed first. The two take turns,
frame by frame, with a measurement of the read bandwidth between them. Both load the checkpoint, which must fit into
memory twice: make_checkpoint.py writes one with fewer layers of the real size. A checkpoint in the original layout is
timed alone.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import ReadBandwidth, seconds, summary, write_json

from higgs_native.checkpoint import resolve_folder
from higgs_native.config import read_json_object
from higgs_native.kv_cache import KVCache
from higgs_native.model import LanguageModel, Rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a Hub name")
    parser.add_argument("--positions", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--frames", type=int, default=20, help="frames timed at each position")
    parser.add_argument("--prefill", type=int, nargs=2, default=[100, 200], metavar=("TEXT", "AUDIO"))
    parser.add_argument("--prefill-repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    folder = resolve_folder(args.model)
    start = time.perf_counter()
    native = LanguageModel.from_pretrained(folder, dtype=args.dtype)
    load_seconds = time.perf_counter() - start
    # transformers does not read the original layout, whose configuration is nested.
    alone = args.no_transformers or "text_config" in read_json_object(folder / "config.json")
    report = {"model": describe(native), "load_s": {"higgs_native": round(load_seconds, 1)}}
    reference = None
    if not alone:
        start = time.perf_counter()
        reference = transformers_model(native, folder)
        report["load_s"]["transformers"] = round(time.perf_counter() - start, 1)
    bandwidth = ReadBandwidth()
    print(f"loaded in {report['load_s']} s; {native.dtype}, {torch.get_num_threads()} threads")
    report["frame"] = [bench_frame(native, reference, bandwidth, position, args.frames) for position in args.positions]
    report["prefill"] = bench_prefill(native, reference, *args.prefill, args.prefill_repeats)
    report["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)
    if args.json:
        write_json(args.json, report)


def describe(model: LanguageModel) -> dict[str, Any]:
    config = model.config
    return {
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights_gb_per_frame": round(frame_bytes(model, 0) / 1e9, 3),
    }


def frame_bytes(model: LanguageModel, position: int) -> int:
    """The bytes that a frame must read: weights of the audio path, and keys and values of `position` positions."""
    config = model.config
    layers = [layer for layer in model.layers if not layer.skips_audio]
    weights = [model.audio_head, *(w for x in layers for w in (x.qkv, x.o, x.audio.gate_up, x.audio.down))]
    cache = 2 * len(layers) * position * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    return sum(weight.nbytes for weight in weights) + cache


@torch.inference_mode()
def bench_frame(
    native: LanguageModel, reference: Any, bandwidth: ReadBandwidth, position: int, count: int
) -> dict[str, Any]:
    """Time `count` frames from `position` on."""
    config = native.config
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, config.audio_stream_bos_id, (count + 2, config.num_codebooks), generator=generator)
    cache = native.new_cache(1, position + len(frames))
    for tensor in (*cache.keys, *cache.values):
        tensor[:, :, :position].normal_(generator=generator)
    runs: dict[str, Callable[[int], torch.Tensor]] = {
        "higgs_native": lambda index: native_frame(native, cache, frames[index], position + index)
    }
    if reference is not None:
        runs["transformers"] = transformers_frames(reference, cache, frames, position)
    times: dict[str, list[float]] = {name: [] for name in runs}
    read = []
    for index in range(len(frames)):
        logits = {}
        for name, run in runs.items():
            start = time.perf_counter()
            logits[name] = run(index)
            times[name].append(1e3 * (time.perf_counter() - start))
        read.append(bandwidth.measure())
        if index == 0 and reference is not None:
            check_agreement(logits)
    # The first two frames warm up.
    result: dict[str, Any] = {"position": position, "read_gb_per_s": summary(read[2:], digits=1)}
    gigabytes = frame_bytes(native, position + len(frames) // 2) / 1e9
    result["gb_per_frame"] = round(gigabytes, 3)
    for name in runs:
        ms = summary(times[name][2:])
        rate = 1e3 * gigabytes / ms["median"]
        share = rate / result["read_gb_per_s"]["median"]
        result[name] = {"ms": ms, "gb_per_s": round(rate, 2), "share_of_read_bandwidth": round(share, 3)}
        print(
            f"position {position}: {name:12} {ms['median']:8.2f} ms a frame, {rate:5.1f} GB/s, {share:4.0%} of reading"
        )
    if reference is not None:
        result["speedup"] = round(result["transformers"]["ms"]["median"] / result["higgs_native"]["ms"]["median"], 3)
        print(f"position {position}: {result['speedup']:.2f} times as fast as transformers")
    return result


@torch.inference_mode()
def bench_prefill(native: LanguageModel, reference: Any, text: int, audio: int, repeats: int) -> dict[str, Any]:
    """Time a prompt of `text` tokens, then `audio` frames, into an empty cache."""
    config = native.config
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (text,), generator=generator)
    frames = torch.randint(0, config.audio_stream_bos_id, (audio, config.num_codebooks), generator=generator)
    int32 = {"dtype": torch.int32}
    rows = Rows(
        token_ids=ids.int(),
        codes=frames.int(),
        slots=torch.zeros(text + audio, **int32),
        positions=torch.arange(text + audio, **int32),
        text_positions=torch.arange(text, **int32),
    )
    runs: dict[str, Callable[[], object]] = {
        "higgs_native": lambda: native.audio_logits(native.forward(rows, native.new_cache(1, text + audio))[-1:])
    }
    if reference is not None:
        placeholders = torch.full((audio,), config.audio_out_token_id)
        inputs = {"input_ids": torch.cat([ids, placeholders])[None], "audio_input_ids": frames[None]}
        runs["transformers"] = lambda: reference(**inputs, use_cache=True, logits_to_keep=1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):  # the first one warms up
        for name, run in runs.items():
            times[name].append(seconds(run))
    result: dict[str, Any] = {"text_rows": text, "audio_rows": audio}
    for name in runs:
        measured = summary(times[name][1:])
        rate = (text + audio) / measured["median"]
        result[name] = {"s": measured, "rows_per_s": round(rate, 1)}
        print(f"prefill of {text} + {audio} rows: {name:12} {measured['median']:7.3f} s, {rate:6.1f} rows/s")
    if reference is not None:
        result["speedup"] = round(result["transformers"]["s"]["median"] / result["higgs_native"]["s"]["median"], 3)
    return result


def native_frame(model: LanguageModel, cache: KVCache, codes: torch.Tensor, position: int) -> torch.Tensor:
    """The logits [codebooks, codebook_size] of the frame `codes` [codebooks] at `position`."""
    none = torch.empty(0, dtype=torch.int32)
    rows = Rows(
        token_ids=none,
        codes=codes[None].int(),
        slots=torch.zeros(1, dtype=torch.int32),
        positions=torch.tensor([position], dtype=torch.int32),
        text_positions=none,
    )
    return model.audio_logits(model.forward(rows, cache))[0]


def transformers_model(native: LanguageModel, folder: Path) -> Any:
    """transformers' model of the same checkpoint and dtype."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, dtype=native.dtype).eval()


def transformers_frames(
    model: Any, cache: KVCache, frames: torch.Tensor, position: int
) -> Callable[[int], torch.Tensor]:
    """A function that computes transformers' logits of frame `index`, from a cache with the same contents on."""
    import transformers

    past = transformers.DynamicCache(config=model.config)
    for index, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
        past.update(keys[:, :, :position].clone(), values[:, :, :position].clone(), index)

    def run(index: int) -> torch.Tensor:
        logits = model(audio_input_ids=frames[None, index : index + 1], past_key_values=past, use_cache=True).logits
        return logits.view(model.config.num_codebooks, model.config.codebook_size).float()

    return run


def check_agreement(logits: dict[str, torch.Tensor]) -> None:
    """Refuse to compare the speed of two models that compute different things."""
    ours, theirs = logits["higgs_native"], logits["transformers"]
    error = float((ours - theirs).std() / theirs.std())
    if error > 0.1:
        raise RuntimeError(f"the logits differ by {error:.0%} of their deviation; these are not the same model")


if __name__ == "__main__":
    main()
