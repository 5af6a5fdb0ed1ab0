"""Measure the streaming decoder: cost by chunk size, cost and error by lookahead.

    python -m benchmarks.bench_streaming --json benchmarks/results/bench_streaming.json

Without --audio-tokenizer, one of the published size with random weights is measured. An error is the RMS of the
difference from decoding all at once, relative to the RMS of the audio, for random codes. The bytes counted are the
decoder's weights, once per chunk.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_speech import decoder_bytes
from benchmarks.measure import ReadBandwidth, seconds, summary, write_json
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.tokenizer import HiggsAudioTokenizer
from higgs_native.testing.random_checkpoint import write_audio_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--audio-tokenizer", help="a folder or a Hub name")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 5, 10, 25, 100], help="frames per chunk")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.audio_tokenizer:
        tokenizer = HiggsAudioTokenizer.from_pretrained(args.audio_tokenizer)
        report = bench(tokenizer, args.frames, args.chunks, args.repeats)
    else:
        report = run(HiggsAudioTokenizerConfig(), args.frames, args.chunks, args.repeats)
    if args.json:
        write_json(args.json, report)


def run(config: HiggsAudioTokenizerConfig, frames: int, sizes: list[int], repeats: int) -> dict[str, Any]:
    """Measure an audio tokenizer of these shapes with random weights; see `bench`."""
    with tempfile.TemporaryDirectory() as folder:
        write_audio_tokenizer(Path(folder), config)
        tokenizer = HiggsAudioTokenizer.from_pretrained(folder)
    return bench(tokenizer, frames, sizes, repeats)


def bench(tokenizer: HiggsAudioTokenizer, frames: int, sizes: list[int], repeats: int) -> dict[str, Any]:
    """Decode `frames` random frames in chunks of each size, then with each lookahead in chunks of 10."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(tokenizer.codebook_size, (tokenizer.num_codebooks, frames), generator=generator)
    whole = tokenizer.decode(codes)

    def stream(size: int, lookahead: int | None = None) -> torch.Tensor:
        decoder = tokenizer.streaming_decoder(lookahead)
        parts = codes.split(size, dim=1)
        return torch.cat([decoder.decode(part, is_last=part is parts[-1]) for part in parts])

    bandwidth = ReadBandwidth(64 << 20)
    seconds_of_audio = frames / tokenizer.frame_rate

    def timed(size: int, lookahead: int | None = None) -> dict[str, Any]:
        num_bytes = -(-frames // size) * decoder_bytes(tokenizer.config)
        times, read = [], []
        for _ in range(repeats):
            times.append(seconds(lambda: stream(size, lookahead)))
            read.append(bandwidth.measure())
        rate = summary(read, digits=1)
        return {
            "real_time_factor": summary([time / seconds_of_audio for time in times], 5),
            "gb": round(num_bytes / 1e9, 3),
            "read_gb_per_s": rate,
            "share_of_read_bandwidth": round(num_bytes / 1e9 / summary(times, 6)["median"] / rate["median"], 4),
        }

    report: dict[str, Any] = {"frames": frames, "chunks": [], "lookahead": []}
    for size in sizes:
        assert torch.equal(stream(size), whole)
        figures = timed(size)
        report["chunks"].append({"frames": size, **figures})
        print(f"chunks of {size:3} frames: real-time factor {figures['real_time_factor']['median']:.4f}")
    for lookahead in range(tokenizer.context_frames, -1, -1):
        difference = stream(10, lookahead) - whole
        error = (difference.square().mean() / whole.square().mean()).sqrt().item()
        figures = timed(10, lookahead)
        report["lookahead"].append({"frames": lookahead, "rms_error": round(error, 6), **figures})
        factor = figures["real_time_factor"]["median"]
        print(f"lookahead {lookahead:2} frames: RMS error {error:.5f}, real-time factor {factor:.4f}")
    return report


if __name__ == "__main__":
    main()
