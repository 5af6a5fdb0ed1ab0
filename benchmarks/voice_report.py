"""How well the embedded voice speaks: held-out sentences, beside those of its teacher.

python -m benchmarks.voice_report [--json benchmarks/results/voice.json] [--only speech formats]

Needs what the steps `materials`, `texts`, `render` and `codes` of examples/train_voice made: the judges, and held-out
speech of the teacher. Each sentence is heard by itself. Printed are the word error rate (Whisper base), DNSMOS, the
spread of the pitch, the share that ends by itself, that is within 15 % of the teacher's duration, and whose nearest
voice is the one that was named or recorded; and how long all of it takes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, write_json
from benchmarks.tools.speech_distance import SAMPLING_RATE, pitch, timbre, voice_distance
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.pipeline import EMBEDDED_VOICE, HiggsAudio
from higgs_native.speech import Speech


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "train_voice"))
from recipe.folder import add_folder_option, use_packages
from recipe.judge import Quality, Recognizer
from recipe.phoneme_tokenizer import VOICES
from recipe.report import held_out, judge


TOLERANCE = 0.15
"""Of the duration."""
EVERYDAY = (
    "The sun rises in the east.",
    "The sun rises in the east and sets in the west.",
    "Hello and welcome, good morning.",
    "Where is the key? It is on the table.",
    "I would like a cup of tea, please.",
    "My name is on the list, and my house is on the hill.",
    "The meeting starts at 9:30 on Monday, March 3rd.",
    "It costs $25, which is not much.",
    "Dr. Smith lives at 42 Baker Street.",
    "Is this the real life, or is it just fantasy?",
    "She sells sea shells by the sea shore.",
    "Thank you for calling, have a nice day!",
)
_KNOWN = 150
"""Held-out sentences that tell how a voice sounds."""
_SHORTEST, _LONGEST = 2.0, 16.0
"""Seconds of a recording that is cloned."""


class Report:
    """The measurements, over held-out sentences in the teacher's voices.

    Args:
        folder: of the recipe.
        model: the checkpoint; the embedded voice if None.
        count: of sentences.
        options: of `HiggsAudio.speak`, beside the seed.
    """

    def __init__(self, folder: Path, model: Path | None, count: int, options: dict[str, Any]) -> None:
        self.model, self.options = model, options
        self.recognizer, self.quality = Recognizer(folder / "materials"), Quality(folder / "materials")
        names = {teacher: name for name, teacher in VOICES.items()}
        known = [
            (str(sentence["normalized"]), names[str(sentence["voice"])], audio)
            for sentence, audio, _ in held_out(folder, max(count, _KNOWN), pitch=True)
        ]
        self.texts, self.voices, self.originals = map(list, zip(*known[:count], strict=True))
        by_voice = {name: [audio for _, voice, audio in known if voice == name] for name in VOICES}
        rate = SAMPLING_RATE
        self.shown = [entry for entry in known if _SHORTEST * rate <= len(entry[2]) <= _LONGEST * rate]
        self.references = {
            name: (statistics.median(map(pitch, audio)), np.mean([timbre(part) for part in audio], axis=0))
            for name, audio in by_voice.items()
        }

    def teacher(self) -> dict[str, float]:
        """Judge the teacher's speech."""
        return self._judged(self.originals)

    def resynthesis(self) -> dict[str, float]:
        """Encode and decode the teacher's speech."""
        tokenizer = HiggsAudio.from_pretrained(self.model).audio_tokenizer
        rate = tokenizer.sampling_rate
        return self._judged([tokenizer.decode(tokenizer.encode(audio, rate)).numpy() for audio in self.originals])

    def speech(self, format: str | None = None) -> dict[str, float]:
        """Speak the sentences, the voice given by name."""
        engine = HiggsAudio.from_pretrained(self.model, quantization=format)
        made = [
            engine.speak(text, voice=voice, seed=index, **self.options)
            for index, (text, voice) in enumerate(zip(self.texts, self.voices, strict=True))
        ]
        return self.of_speech(made)

    def cloning(self) -> dict[str, float]:
        """Speak the sentences in the voice of a recording of the teacher."""
        engine, made = HiggsAudio.from_pretrained(self.model), []
        for index, (text, voice) in enumerate(zip(self.texts, self.voices, strict=True)):
            others = [entry for entry in self.shown if entry[1] == voice and entry[0] != text]
            reference_text, _, recording = others[index % len(others)]
            speech = engine.speak(
                text,
                reference_audio=(recording, SAMPLING_RATE),
                reference_text=reference_text,
                seed=index,
                **self.options,
            )
            made.append(speech)
        return self.of_speech(made)

    def formats(self) -> dict[str, dict[str, float]]:
        """Speak the sentences with quantized weights."""
        return {format: self.speech(format) for format in QUANTIZED_FORMATS}

    def everyday(self) -> dict[str, float]:
        """Speak everyday sentences in the default voice."""
        engine = HiggsAudio.from_pretrained(self.model)
        heard = [
            self.recognizer.hear(engine.speak(text, seed=index, **self.options).audio)
            for index, text in enumerate(EVERYDAY)
        ]
        return {"word_error_rate": round(self.recognizer.word_error_rate(list(EVERYDAY), heard), 4)}

    def speed(self) -> dict[str, float]:
        """Seconds from the command to a WAV of a sentence (the median of three), and per second of speech."""
        took = []
        with tempfile.TemporaryDirectory() as folder:
            text = "Hello and welcome, good morning."
            command = [sys.executable, "-m", "higgs_native", "speak", text, "--seed", "1"]
            command += [] if self.model is None else ["--model", str(self.model)]
            for _ in range(3):
                start = time.perf_counter()
                subprocess.run([*command, "--out", f"{folder}/out.wav"], check=True, capture_output=True)
                took.append(time.perf_counter() - start)
        engine = HiggsAudio.from_pretrained(self.model)
        engine.speak("Hello.", seed=0)
        start = time.perf_counter()
        spoken = sum(engine.speak(text, seed=0, **self.options).duration for text in EVERYDAY)
        factor = (time.perf_counter() - start) / spoken
        return {"cold_start_seconds": round(statistics.median(took), 2), "real_time_factor": round(factor, 4)}

    def size(self) -> dict[str, float]:
        """Megabytes of the checkpoint."""
        files = [path for path in (self.model or EMBEDDED_VOICE).rglob("*") if path.is_file()]
        return {"megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1)}

    def _judged(self, audio: list[np.ndarray]) -> dict[str, float]:
        found = judge(audio, self.texts, self.recognizer, self.quality)
        return {name: round(value, 4) for name, value in found.items()}

    def of_speech(self, made: list[Speech]) -> dict[str, float]:
        lengths = [len(speech.audio) / len(audio) for speech, audio in zip(made, self.originals, strict=True)]
        nearest = [
            min(self.references, key=lambda name: voice_distance(speech.audio, *self.references[name]))
            for speech in made
        ]
        return self._judged([speech.audio for speech in made]) | {
            "stops_by_itself": _share([speech.finish_reason == "stop" for speech in made]),
            "duration_within_15_percent": _share([abs(length - 1) <= TOLERANCE for length in lengths]),
            "median_duration": round(statistics.median(lengths), 3),
            "right_voice_is_nearest": _share([a == b for a, b in zip(nearest, self.voices, strict=True)]),
        }


def _share(outcomes: list[bool]) -> float:
    return round(sum(outcomes) / len(outcomes), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--model", type=Path, help="another checkpoint than the embedded voice")
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--temperature", type=float, help="default: the checkpoint's")
    parts = "size", "teacher", "resynthesis", "speech", "cloning", "formats", "everyday", "speed"
    parser.add_argument("--only", nargs="*", choices=parts)
    parser.add_argument("--json", type=Path, help="where to write the figures; those of other parts stay")
    args = parser.parse_args()

    use_packages(args.folder)
    options = {} if args.temperature is None else {"temperature": args.temperature}
    report = Report(args.folder, args.model, args.sentences, options)
    figures: dict[str, Any] = {}
    if args.json and args.json.exists():
        figures = json.loads(args.json.read_text(encoding="utf-8"))
        del figures["machine"]
    figures |= {"sentences": len(report.texts), "options": options}
    for name in parts:
        if not args.only or name in args.only:
            figures[name] = getattr(report, name)()
            print(f"{name}: {figures[name]}", flush=True)
    if args.json:
        write_json(args.json, figures)
    else:
        print(machine()["processor"], torch.get_num_threads(), "threads")


if __name__ == "__main__":
    main()
