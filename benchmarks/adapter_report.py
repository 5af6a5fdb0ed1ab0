"""How well ten minutes of training on ten minutes of speech give the embedded voice a speaker that it never heard.

python -m benchmarks.adapter_report [--json benchmarks/results/adapter.json]

The teacher of the embedded voice reads texts in a voice that it was not trained on; `higgs-native train` learns an
adapter from these recordings, with settings for a small model; and held-out sentences are judged as in
voice_report.py, spoken by the adapter and, beside it, by the voices that the model knew. Needs the same steps of
examples/train_voice. The recordings and the run are kept in the recipe's folder, `adapter_report`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.measure import machine, write_json
from benchmarks.tools.speech_distance import SAMPLING_RATE, pitch, timbre
from benchmarks.voice_report import Report
from higgs_native.pipeline import HiggsAudio


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "train_voice"))
from recipe.codes import LEVEL
from recipe.dictionary import read_pronouncers
from recipe.folder import add_folder_option, use_packages, whole_folder
from recipe.materials import UNHEARD
from recipe.teacher import Teacher


NAME = UNHEARD.partition("_")[2]
"""The speaker's name in prompts."""
MINUTES = 10.0
SETTINGS = {
    "parts": ["attention", "audio_ffn", "heads"],
    "rank": 8,
    "dropout": 0.1,
    "code_noise": 0.35,
    "learning_rate": 1e-3,
    "max_rows": 2048,
    "checkpoint_gradients": False,
}
"""Settings for a model of 10 M parameters; the defaults are for the published model. Small passes and a high rate
train it faster, and its heads learn the voice's pitch. With 800 steps it overfits the recordings."""
_SHORTEST, _LONGEST = 2.0, 20.0
"""Seconds of a clip, as docs/training.md advises."""


def texts_to_read(folder: Path) -> Iterator[tuple[str, str]]:
    """Text and phonemes of utterances in American English, from the end: not held out, no random words."""
    for line in reversed((folder / "utterances.jsonl").read_text(encoding="utf-8").splitlines()):
        utterance = json.loads(line)
        if not utterance["held_out"] and utterance["kind"] != "words" and utterance["voice"].startswith("a"):
            yield utterance["text"], utterance["phonemes"]


def speak(teacher: Teacher, phonemes: str) -> np.ndarray:
    """float32 [samples], at the loudness of the embedded voice's own training."""
    audio = teacher.render(phonemes, UNHEARD, 1.0).audio
    loud = audio[np.abs(audio) > 0.01]
    return np.clip(audio * (LEVEL / np.sqrt(np.mean(np.square(loud)))), -1, 1)


def record(folder: Path, out: Path, teacher: Teacher, minutes: float) -> None:
    """Write clips and their manifest."""
    with whole_folder(out) as partial:
        lines, seconds = [], 0.0
        for text, phonemes in texts_to_read(folder):
            if seconds >= 60 * minutes:
                break
            audio = speak(teacher, phonemes)
            length = len(audio) / SAMPLING_RATE
            if not _SHORTEST <= length <= _LONGEST:
                continue
            name = f"{len(lines):03}.flac"
            soundfile.write(partial / name, audio, SAMPLING_RATE)
            lines.append(json.dumps({"audio": name, "text": text, "speaker": NAME}, ensure_ascii=False))
            seconds += length
        (partial / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def train(data: Path, output: Path, steps: int, model: Path | None) -> float:
    """Run `higgs-native train`; its seconds."""
    settings = {"data": str(data / "train.jsonl"), "output": str(output), "steps": steps, **SETTINGS}
    if model is not None:
        settings |= {"model": str(model), "audio_tokenizer": str(model)}
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "higgs_native", "train", str(path)], check=True)
    return time.perf_counter() - start


def judge(folder: Path, data: Path, adapter: Path, model: Path | None, count: int, teacher: Teacher) -> dict[str, Any]:
    """Judge held-out sentences: of the teacher in the new voice, of the model in its own voices, of the adapter."""
    report = Report(folder, model, count, {})
    figures: dict[str, Any] = {"sentences": len(report.texts), "known voices": report.speech()}
    pronounce = read_pronouncers(folder / "materials")["us"].phonemes
    report.originals = [speak(teacher, pronounce(text)[0]) for text in report.texts]
    report.voices = [NAME] * len(report.texts)
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(data.glob("*.flac"))]
    report.references[NAME] = (
        statistics.median(map(pitch, clips)),
        np.mean([timbre(clip) for clip in clips], axis=0),
    )
    figures["teacher"] = report.teacher()
    engine = HiggsAudio.from_pretrained(model)
    engine.load_adapter(NAME, adapter)
    made = [engine.speak(text, adapter=NAME, seed=index) for index, text in enumerate(report.texts)]
    figures["adapter"] = report.of_speech(made)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--model", type=Path, help="another checkpoint than the embedded voice")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of speech")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--sentences", type=int, default=50)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()

    use_packages(args.folder)
    out = args.folder / "adapter_report"
    out.mkdir(exist_ok=True)
    threads = torch.get_num_threads()
    teacher = Teacher(args.folder / "materials")
    torch.set_num_threads(threads)  # the teacher takes one
    data, run = out / f"speech_{args.minutes:g}", out / f"run_{args.minutes:g}_{args.steps}"
    if not data.is_dir():
        record(args.folder, data, teacher, args.minutes)
    seconds = train(data, run, args.steps, args.model)
    figures = {"minutes_of_speech": args.minutes, "steps": args.steps, "training_seconds": round(seconds, 1)}
    figures |= judge(args.folder, data, run / "adapter", args.model, args.sentences, teacher)
    for name, value in figures.items():
        print(f"{name}: {value}", flush=True)
    if args.json:
        write_json(args.json, figures)
    else:
        print(machine()["processor"], torch.get_num_threads(), "threads")


if __name__ == "__main__":
    main()
