"""Time the audio tokenizer beside transformers, and its operators beside the same functions in plain PyTorch.

    python -m benchmarks.ops.bench_audio_tokenizer --json benchmarks/results/bench_audio_tokenizer.json

Without --model, a checkpoint of the published size with random weights is written to a temporary folder. The two sides
take turns, call by call, in one process with the same weights.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ReadBandwidth, seconds, summary, write_json
from benchmarks.tools.transformers_baseline import import_transformers
from higgs_native import ops, reference
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.testing.random_checkpoint import write_audio_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder (in the transformers layout) or a Hub name")
    parser.add_argument("--frames", type=int, nargs="+", default=[5, 25, 100])
    parser.add_argument("--encode-seconds", type=float, nargs="*", default=[5.0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as temporary:
        folder = resolve_folder(args.model) if args.model else Path(temporary)
        config = None if args.model else HiggsAudioTokenizerConfig()
        report = run(folder, config, args.frames, args.encode_seconds, args.repeats)
    if args.json:
        write_json(args.json, report)


def run(
    folder: Path,
    config: HiggsAudioTokenizerConfig | None,
    frames: Sequence[int],
    encode_seconds: Sequence[float],
    repeats: int,
    with_transformers: bool = True,
    with_compile: bool = True,
) -> dict[str, Any]:
    """Time the audio tokenizer in `folder`; write it there first if a configuration is given."""
    if config is not None:
        write_audio_tokenizer(folder, config)
    native = HiggsAudioTokenizer.from_pretrained(folder)
    bandwidth = ReadBandwidth(256 << 20)
    report = bench_operators(native.config, frames[-1], repeats, with_compile, bandwidth)
    if with_transformers:
        report |= bench_tokenizer(native, folder, frames, encode_seconds, repeats, bandwidth)
    return report


def compare(
    name: str,
    runs: dict[str, Callable[[], object]],
    repeats: int,
    audio_seconds: float,
    num_bytes: int,
    bandwidth: ReadBandwidth,
) -> dict[str, Any]:
    """Time the runs in turns, and the read bandwidth in each turn.

    Args:
        num_bytes: min bytes that a run reads and writes.

    Returns:
        Per run its time in ms, its real-time factor and its share of the read bandwidth; and the speedup of the first
        run over the fastest of the others.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {key: [] for key in runs}
    read = []
    for _ in range(repeats):
        for key, run in runs.items():
            times[key].append(1e3 * seconds(run))
        read.append(bandwidth.measure())
    rate = summary(read, digits=1)
    result: dict[str, Any] = {key: {"ms": summary(values)} for key, values in times.items()}
    for entry in result.values():
        entry["real_time_factor"] = round(entry["ms"]["median"] / 1e3 / audio_seconds, 5)
        share = num_bytes / entry["ms"]["median"] / 1e6 / rate["median"]
        entry["share_of_read_bandwidth"] = round(share, 3)
    first, *others = (result[key]["ms"]["median"] for key in runs)
    result["speedup"] = round(min(others) / first, 2)
    texts = ", ".join(f"{key} {entry['ms']['median']:.2f} ms" for key, entry in list(result.items())[:-1])
    print(f"{name:40} {texts}; {result['speedup']:.2f} times as fast")
    return {"mb": round(num_bytes / 1e6, 3), "read_gb_per_s": rate, **result}


@torch.inference_mode()
def bench_operators(
    config: HiggsAudioTokenizerConfig, frames: int, repeats: int, with_compile: bool, bandwidth: ReadBandwidth
) -> dict[str, Any]:
    """Time each operator at the sizes of the decoder, for `frames` frames, beside plain and compiled PyTorch."""
    report: dict[str, Any] = {"snake": [], "snake_conv_transpose1d": [], "residual_unit": []}
    audio_seconds = frames / config.frame_rate
    channels, time = config.decoder_hidden_size, frames

    def add(operator: str, *arguments: Any) -> None:
        shape = list(arguments[0].shape)
        runs = {
            "native": lambda: getattr(ops, operator)(*arguments),
            "torch": lambda: getattr(reference, operator)(*arguments),
        }
        if with_compile:
            torch.compiler.reset()  # it limits the number of shapes per function
            compiled = torch.compile(getattr(reference, operator), dynamic=False)
            runs["torch.compile"] = lambda: compiled(*arguments)
        num_bytes = sum(argument.nbytes for argument in arguments if isinstance(argument, torch.Tensor))
        result = compare(f"{operator} {shape}", runs, repeats, audio_seconds, num_bytes, bandwidth)
        report[operator].append({"out": shape, **result})

    for stride in config.upsampling_ratios:
        x = torch.randn(1, channels, time)
        weight = torch.randn(channels, channels // 2, 2 * stride) / channels**0.5
        alpha, channels, time = torch.rand(channels) + 0.5, channels // 2, time * stride
        out, bias = torch.empty(1, channels, time), torch.randn(channels)
        add("snake_conv_transpose1d", out, x, alpha, ops.pack_conv_transpose1d(weight), bias)
        x, alpha = torch.randn(1, channels, time), torch.rand(channels) + 0.5
        add("snake", out, x, alpha)
        wide, narrow = torch.randn(channels, channels, 7), torch.randn(channels, channels, 1)
        add("residual_unit", out, x, alpha, wide / 7, bias, alpha, narrow, bias, 9)
    return report


@torch.inference_mode()
def bench_tokenizer(
    native: HiggsAudioTokenizer,
    folder: Path,
    frames: list[int],
    durations: list[float],
    repeats: int,
    bandwidth: ReadBandwidth,
) -> dict[str, Any]:
    """Time decoding of `frames` frames, and encoding of `durations` seconds of audio."""
    model = import_transformers().HiggsAudioV2TokenizerModel.from_pretrained(folder).eval()
    report: dict[str, Any] = {"decode": [], "encode": []}
    sizes = {name: weight.nbytes for name, weight in model.named_parameters()}
    decoder_bytes = sum(size for name, size in sizes.items() if name.startswith("acoustic_decoder"))
    encoder_bytes = sum(sizes.values()) - decoder_bytes
    for count in frames:
        codes = torch.randint(native.codebook_size, (native.num_codebooks, count))
        expected = model.decode(codes[None]).audio_values[0, 0]
        error = ((native.decode(codes) - expected).abs().max() / expected.abs().max()).item()
        if error >= 1e-4:
            raise RuntimeError(f"decoded audio must equal transformers', got a difference of {error:.2g} of its peak")
        runs = {
            "higgs_native": lambda codes=codes: native.decode(codes),
            "transformers": lambda codes=codes: model.decode(codes[None]),
        }
        result = compare(f"decode {count} frames", runs, repeats, count / native.frame_rate, decoder_bytes, bandwidth)
        report["decode"].append({"frames": count, **result})
    for duration in durations:
        audio = torch.randn(int(duration * native.frame_rate) * native.hop_length) / 10

        def encode(audio: torch.Tensor = audio) -> torch.Tensor:
            audio[0] += 1e-6  # codes are cached by their audio, so it changes each time
            return native.encode(audio, native.sampling_rate)

        runs = {"higgs_native": encode, "transformers": lambda audio=audio: model.encode(audio[None, None])}
        result = compare(f"encode {duration:g} s", runs, max(3, repeats // 5), duration, encoder_bytes, bandwidth)
        report["encode"].append({"seconds": duration, **result})
    return report


if __name__ == "__main__":
    main()
