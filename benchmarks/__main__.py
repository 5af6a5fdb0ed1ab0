"""Run all benchmarks: bandwidth, operators, frames, prompts, requests, loading, speech, Python, training, contention.

    python -m benchmarks --json report.json --plots plots

The two sides of a comparison take turns in this process. Every figure has its median, extremes and spread. Shares are
of the read bandwidth measured in the same turns. Without --model, a checkpoint with the published model's shapes,
random weights and --layers layers is written to a temporary folder. --quick runs everything at toy size, to see that
it runs: its figures mean nothing.
"""

import argparse
import dataclasses
import importlib.util
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    bench_contention,
    bench_engine,
    bench_frame,
    bench_load,
    bench_prefix,
    bench_python,
    bench_speech,
    bench_streaming,
    bench_training,
)
from benchmarks.measure import ReadBandwidth, summary, write_json
from benchmarks.ops import bench_audio_tokenizer, bench_linear
from higgs_native import HiggsAudio, exit_on_bad_input
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.ops.formats import WEIGHT_FORMATS
from higgs_native.testing.configs import DEMO_AUDIO_TOKENIZER_CONFIG, REAL_SIZE_CONFIG
from higgs_native.testing.random_checkpoint import write_language_model


SECTIONS = ("bandwidth", "linear", "audio_tokenizer", "streaming", "frame", "prefix", "engine", "speech", "python")
SECTIONS += ("load", "training", "contention")


@exit_on_bad_input()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint of the sections that need one: a folder or a Hub name")
    parser.add_argument(
        "--layers", type=int, default=8, help="layers of the checkpoint that is written without --model"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="run everything at toy size")
    parser.add_argument("--no-transformers", action="store_true", help="don't compare with transformers")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--plots", type=Path, help="plot the frame section into this folder (needs matplotlib)")
    args = parser.parse_args()
    if args.plots and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plots needs matplotlib: pip install 'higgs-native[bench]'")
    compare = not args.no_transformers
    for package in ("transformers", "torchaudio") if compare else ():
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed: pip install 'higgs-native[test]', or give --no-transformers")

    temporary = tempfile.TemporaryDirectory()
    # Written once, and only if a section needs it.
    checkpoint = cache(lambda: resolve_folder(args.model or write_checkpoint(temporary.name, args.layers, args.quick)))
    if args.model:
        checkpoint()  # a wrong name fails before anything is measured
    report: dict[str, Any] = {"quick": args.quick}
    sections = {
        "bandwidth": lambda: run_bandwidth(args.quick),
        "linear": lambda: run_linear(args.quick),
        "audio_tokenizer": lambda: run_audio_tokenizer(args.quick, compare),
        "streaming": lambda: run_streaming(args.quick),
        "frame": lambda: run_frame(checkpoint(), args.quick, compare),
        "prefix": lambda: run_prefix(checkpoint(), args.quick),
        "engine": lambda: run_engine(checkpoint(), args.quick, compare),
        "speech": lambda: run_speech(args.quick),
        "python": lambda: run_python(args.quick),
        "load": lambda: run_load(checkpoint(), args.quick),
        "training": lambda: run_training(args.quick, compare),
        "contention": lambda: run_contention(checkpoint(), args.quick, compare),
    }
    with temporary:
        for name in args.sections:
            print(f"== {name}")
            report[name] = sections[name]()
    if args.json:
        write_json(args.json, report)
    if args.plots and "frame" in report:
        from benchmarks.tools.plots import draw_frame

        for path in draw_frame(report["frame"], args.plots):
            print(path)


def run_bandwidth(quick: bool) -> dict[str, Any]:
    """Read bandwidth of memory, over more bytes than the caches hold."""
    bandwidth = ReadBandwidth((16 if quick else 1024) << 20)
    measured = summary([bandwidth.measure() for _ in range(3 if quick else 15)], digits=1)
    print(f"{measured['median']} GB/s read with {torch.get_num_threads()} threads")
    return {"read_gb_per_s": measured}


def run_linear(quick: bool) -> dict[str, Any]:
    """The packed linear operator with a weight of the published size, beside torch's."""
    n, k, repeats = (96, 64, 2) if quick else (8192, 3072, 15)
    bandwidth = ReadBandwidth((8 if quick else 256) << 20)
    runs = [
        bench_linear.bench(rows, format, n, k, repeats, bandwidth, with_compile=not quick)
        for format in WEIGHT_FORMATS
        for rows in ((1, 16) if quick else (1, 4, 16, 64, 256))
    ]
    return {"shape": [n, k], "runs": runs}


def run_audio_tokenizer(quick: bool, compare: bool) -> dict[str, Any]:
    """The audio tokenizer and its operators, beside transformers' model and torch's operators."""
    repeats = 2 if quick else 15
    with tempfile.TemporaryDirectory() as folder:
        return bench_audio_tokenizer.run(
            Path(folder),
            DEMO_AUDIO_TOKENIZER_CONFIG if quick else HiggsAudioTokenizerConfig(),
            [5] if quick else [5, 25, 100],
            [0.5] if quick else [5.0],
            repeats,
            compare,
            with_compile=not quick,
        )


def run_streaming(quick: bool) -> dict[str, Any]:
    """The streaming decoder by chunk size and by lookahead."""
    config = DEMO_AUDIO_TOKENIZER_CONFIG if quick else HiggsAudioTokenizerConfig()
    return bench_streaming.run(config, 12 if quick else 100, [5] if quick else [1, 5, 10, 25, 100], 1 if quick else 5)


def write_checkpoint(folder: str, layers: int, quick: bool) -> str:
    """Write a language model with random weights and `layers` layers of the published shapes; return its folder."""
    small = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 32}  # fmt: skip
    layers = 2 if quick else layers
    shapes = {"num_hidden_layers": layers, "audio_dual_ffn_layers": tuple(range(layers))}
    config = dataclasses.replace(REAL_SIZE_CONFIG, **shapes, **(small if quick else {}))
    write_language_model(folder, config, endless=True)
    return folder


def run_frame(folder: Path, quick: bool, compare: bool) -> dict[str, Any]:
    """A frame and a prompt in each weight format, beside transformers."""
    formats = ["bfloat16", "int8", "int4"]
    positions, frames, prefill, repeats = (
        ([16], 3, (5, 10), 1) if quick else ([256, 512, 1024, 4096], 20, (100, 200), 5)
    )
    return bench_frame.run(folder, formats, positions, frames, prefill, repeats, compare, compare and not quick)


def run_prefix(folder: Path, quick: bool) -> dict[str, Any]:
    """A prompt and the first audio in a new voice, and in a voice whose prefix is cached."""
    if quick:
        return bench_prefix.run(folder, ["int8"], DEMO_AUDIO_TOKENIZER_CONFIG, 3.0, 1)
    return bench_prefix.run(folder, bench_prefix.FORMATS, HiggsAudioTokenizerConfig(), 10.0, 5)


def run_engine(folder: Path, quick: bool, compare: bool) -> dict[str, Any]:
    """Requests side by side and one after the other, beside a batch of transformers."""
    frames, repeats = (12, 1) if quick else (60, 3)
    return bench_engine.run(folder, bench_engine.FORMATS, bench_engine.COUNTS, frames, repeats, compare)


def run_speech(quick: bool) -> dict[str, Any]:
    """The embedded voice from text to sound."""
    start = time.perf_counter()
    engine = HiggsAudio.from_pretrained()
    load_seconds = time.perf_counter() - start
    report = bench_speech.run(engine, 200, 2 if quick else 10, ReadBandwidth((8 if quick else 64) << 20))
    factor = report["real_time_factor"]["median"]
    print(f"the embedded voice: loaded in {load_seconds:.2f} s, real-time factor {factor:.3f}")
    return {"load_s": round(load_seconds, 3), **report}


def run_python(quick: bool) -> dict[str, Any]:
    """Time per frame of the embedded voice outside the native operators."""
    return bench_python.run(HiggsAudio.from_pretrained(), 20 if quick else 100, 2 if quick else 20)


def run_load(folder: Path, quick: bool) -> dict[str, Any]:
    """Loading in each weight format, and from a packed file."""
    return bench_load.run(folder, bench_load.FORMATS, 1 if quick else 3)


def run_training(quick: bool, compare: bool) -> dict[str, Any]:
    """A training step, beside transformers."""
    if not compare:
        return {}
    lengths = {"mixed lengths": (20, 30)} if quick else bench_training.LENGTHS
    return bench_training.run(bench_training.config_of(quick), lengths, 1 if quick else 7)


def run_contention(folder: Path, quick: bool, compare: bool) -> dict[str, Any]:
    """Speech and frames beside other busy processes."""
    processes, frames, repeats = ((0, 1), 2, 1) if quick else (bench_contention.PROCESSES, 10, 5)
    return bench_contention.run(folder, bench_contention.FORMATS, processes, frames, repeats, compare)


if __name__ == "__main__":
    main()
