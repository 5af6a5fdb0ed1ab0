"""From text to sound: the real-time factor, and peak memory.

    python -m benchmarks.bench_speech --json report.json                     # the embedded voice
    python -m benchmarks.tools.make_checkpoint --out /data/higgs-random
    python -m benchmarks.bench_speech --model /data/higgs-random --formats bfloat16 int8 int4 --json report.json

Each format runs in its own process, so that its memory can be measured. A model other than the embedded voice speaks
with ten seconds of reference audio, spoken by the embedded voice. Prompt, reference and decoder are timed.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_frame import frame_bytes
from benchmarks.measure import ReadBandwidth, in_format, summary, write_json
from higgs_native import HiggsAudio
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.audio_tokenizer.weights import tensor_shapes
from higgs_native.ops.formats import WEIGHT_FORMATS


SENTENCE = "The sun rises in the east and sets in the west."
REFERENCE_TEXT = "The sun rises in the east and sets in the west. We are glad that you are here today."
REFERENCE_SECONDS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a Hub name; by default the embedded voice")
    parser.add_argument("--formats", nargs="+", choices=WEIGHT_FORMATS, default=["bfloat16"])
    parser.add_argument("--frames", type=int, default=100, help="max frames of a speech")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--in-this-process", action="store_true", help="run one format here, and print JSON")
    args = parser.parse_args()
    if args.in_this_process:
        print(json.dumps(bench(args.model, args.formats[0], args.frames, args.repeats)))
        return
    report: dict[str, Any] = {}
    for format in args.formats:
        command = [sys.executable, "-m", __spec__.name, "--in-this-process", "--formats", format]
        command += ["--frames", str(args.frames), "--repeats", str(args.repeats)]
        command += ["--model", args.model] if args.model else []
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        report[format] = json.loads(printed.splitlines()[-1])
        found = report[format]
        print(
            f"{format:9} loaded in {found['load_s']} s, real-time factor {found['real_time_factor']['median']:.3f}, "
            f"{found['resident_gb']} GB resident, {found['peak_gb']} GB peak"
        )
    if args.json:
        write_json(args.json, report)


def bench(model: str | None, format: str, frames: int, repeats: int) -> dict[str, Any]:
    """Load the model in a format and time its speech."""
    reference = {}
    if model is not None:
        spoken = HiggsAudio.from_pretrained().speak(REFERENCE_TEXT, seed=0)
        samples = np.resize(spoken.audio, round(REFERENCE_SECONDS * spoken.sampling_rate))
        reference = {"reference_audio": (samples, spoken.sampling_rate), "reference_text": REFERENCE_TEXT}
    start = time.perf_counter()
    engine = HiggsAudio.from_pretrained(model, **in_format(format))
    load_seconds = time.perf_counter() - start
    # The prefix cache would save the prompt of a known voice, so every speech starts with an empty one.
    result = run(engine, frames, repeats, ReadBandwidth(64 << 20), reference, new_voice=model is not None)
    status = Path("/proc/self/status")
    resident = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return {
        "layers": engine.model.config.num_hidden_layers,
        "load_s": round(load_seconds, 2),
        **result,
        "resident_gb": round(int(resident[0]) * 1024 / 1e9, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def run(
    engine: HiggsAudio,
    frames: int,
    repeats: int,
    bandwidth: ReadBandwidth,
    reference: dict[str, Any] | None = None,
    new_voice: bool = False,
) -> dict[str, Any]:
    """Speak a sentence; return its real-time factor and its share of the read bandwidth.

    The bytes counted are those that the frames must read, and the decoder of the audio tokenizer once.
    """
    factors, shares, read = [], [], []
    for seed in range(repeats + 1):
        if new_voice:
            engine.model.engine.forget_prefixes()
        start = time.perf_counter()
        speech = engine.speak(SENTENCE, seed=seed, max_new_tokens=frames, **(reference or {}))
        took = time.perf_counter() - start
        read.append(bandwidth.measure())
        drawn = round(speech.duration * engine.audio_tokenizer.frame_rate)
        num_bytes = drawn * frame_bytes(engine.model, 0) + decoder_bytes(engine.audio_tokenizer.config)
        factors.append(took / speech.duration)
        shares.append(num_bytes / took / 1e9 / read[-1])
    return {
        "real_time_factor": summary(factors[1:]),  # the first is a warm-up
        "read_gb_per_s": summary(read[1:], digits=1),
        "share_of_read_bandwidth": summary(shares[1:]),
    }


def decoder_bytes(config: HiggsAudioTokenizerConfig) -> int:
    """Bytes of the weights of an audio tokenizer's decoder."""
    shapes = tensor_shapes(config).items()
    return 4 * sum(math.prod(shape) for name, shape in shapes if name.startswith("acoustic_decoder"))


if __name__ == "__main__":
    main()
