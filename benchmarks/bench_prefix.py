"""Measure what the prefix cache saves in a known voice: time of the prompt, and time to the first audio.

    python -m benchmarks.tools.make_checkpoint --out /data/higgs-random --layers 8
    python -m benchmarks.bench_prefix --model /data/higgs-random --json benchmarks/results/bench_prefix.json

One text is spoken in a voice with ten seconds (250 frames) of reference audio that no prompt has had, then another
text in the same voice. The reference is speech of the embedded voice, and is encoded beforehand. The bytes counted
are the weights: once for the prompt, once per frame, once for the decoder.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_frame import frame_bytes, prompt_bytes
from benchmarks.bench_speech import REFERENCE_TEXT, decoder_bytes
from benchmarks.measure import ReadBandwidth, in_format, seconds, summary, write_json
from higgs_native import HiggsAudio, HiggsAudioModel, HiggsAudioTokenizer
from higgs_native.audio_tokenizer.config import HiggsAudioTokenizerConfig
from higgs_native.checkpoint.files import resolve_folder
from higgs_native.testing.random_checkpoint import write_audio_tokenizer


FORMATS = ("bfloat16", "int8", "int4")
TEXTS = ("Good morning to all of you.", "Thank you for the good work.")


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a Hub name")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = run(resolve_folder(args.model), args.formats, HiggsAudioTokenizerConfig(), 10.0, args.repeats)
    if args.json:
        write_json(args.json, report)


def run(
    folder: Path,
    formats: Sequence[str],
    audio_tokenizer_config: HiggsAudioTokenizerConfig,
    reference_seconds: float,
    repeats: int,
) -> dict[str, Any]:
    """Time each format in turn, with a random audio tokenizer; print and return the figures."""
    with tempfile.TemporaryDirectory() as temporary:
        write_audio_tokenizer(temporary, audio_tokenizer_config)
        audio_tokenizer = HiggsAudioTokenizer.from_pretrained(temporary)
    spoken = HiggsAudio.from_pretrained().speak(REFERENCE_TEXT, seed=0)
    reference = np.resize(spoken.audio, round(reference_seconds * spoken.sampling_rate)), spoken.sampling_rate
    report: dict[str, Any] = {"reference_s": reference_seconds}
    for format in formats:
        model = HiggsAudioModel.from_pretrained(folder, **in_format(format))
        report["model"] = {"layers": model.config.num_hidden_layers, "hidden_size": model.config.hidden_size}
        report[format] = bench(HiggsAudio(model, audio_tokenizer), reference, repeats)
        for name in ("prompt", "first_audio"):
            without, kept = (report[format][name][f"{key}_s"]["median"] for key in ("new_voice", "known_voice"))
            print(f"{format:9} {name:11}: {without:7.3f} s with a new voice, {kept:7.3f} s with a known one")
    return report


def bench(engine: HiggsAudio, reference: tuple[np.ndarray, int], repeats: int) -> dict[str, Any]:
    """Time the two texts in turns, so that other load on the machine affects both."""
    voice = {"reference_audio": reference, "reference_text": REFERENCE_TEXT}

    def prompt(text: str) -> None:
        engine.speak(text, **voice, max_new_tokens=1)

    drawn = 0

    def first_audio(text: str) -> None:
        nonlocal drawn
        chunk = next(iter(engine.stream(text, **voice, seed=0)))
        frames = len(chunk.samples) // engine.audio_tokenizer.hop_length
        # Generation is ahead of the audio by the delay pattern and the decoder's lookahead.
        drawn = frames + engine.model.config.num_codebooks - 1 + engine.audio_tokenizer.context_frames

    report: dict[str, Any] = {}
    bandwidth = ReadBandwidth(64 << 20)
    for name, function in (("prompt", prompt), ("first_audio", first_audio)):
        times: dict[str, list[float]] = {"new_voice_s": [], "known_voice_s": []}
        read = []
        for _ in range(repeats + 1):  # the first round warms up, and encodes the reference
            engine.model.engine.forget_prefixes()
            for key, text in zip(times, TEXTS, strict=True):
                times[key].append(seconds(lambda function=function, text=text: function(text)))
            read.append(bandwidth.measure())
        report[name] = {key: summary(values[1:]) for key, values in times.items()}
        medians = [report[name][key]["median"] for key in times]
        report[name]["times_as_fast"] = round(medians[0] / medians[1], 2)
        num_bytes = prompt_bytes(engine.model)
        if name == "first_audio":
            num_bytes += drawn * frame_bytes(engine.model, 0) + decoder_bytes(engine.audio_tokenizer.config)
        rate = summary(read[1:], digits=1)
        report[name]["gb"] = round(num_bytes / 1e9, 3)
        report[name]["read_gb_per_s"] = rate
        report[name]["shares_of_read_bandwidth"] = [
            round(num_bytes / 1e9 / median / rate["median"], 4) for median in medians
        ]
    return report


if __name__ == "__main__":
    main()
