"""How well the embedded voice speaks: held-out sentences, beside eSpeak NG's renderings of them.

python -m benchmarks.voice_report [--json benchmarks/results/voice.json] [--quick]

Needs eSpeak NG. It prints how often the audio tokenizer's resynthesis is nearest to its own original. Of the speech it
prints how often it is nearest to the rendering of the same sentence in the same voice, ends by itself, has the right
duration, and has the voice that was named or recorded. It also prints how long all of it takes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, write_json
from benchmarks.tools.speech_distance import (
    SAMPLING_RATE,
    mel_spectrogram,
    pitch,
    timbre,
    voice_distance,
    warped_distances,
)
from higgs_native.ops.formats import QUANTIZED_FORMATS
from higgs_native.pipeline import HiggsAudio
from higgs_native.prompt.voices import Voice
from higgs_native.speech import Speech


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "train_voice"))
from espeak import VOICES, EspeakVoice, render
from sentences import held_out_sentences, read_words


REFERENCE = "seven good friends walk together."
CARRIER = "please say {} again."
TOLERANCE = 0.15
"""Of the duration."""


class Report:
    """The measurements, over `sentences` held-out sentences; the voices take turns.

    Args:
        engine: speaks.
        count: of sentences.
        options: of `HiggsAudio.speak`, beside the seed.
    """

    def __init__(self, engine: HiggsAudio, count: int, options: dict[str, Any]) -> None:
        self.engine, self.options = engine, options
        self.sentences = held_out_sentences(count)
        self.renderings = {voice: [render(text, voice) for text in self.sentences] for voice in VOICES}
        self.spectrograms = {voice: [mel_spectrogram(a) for a in audio] for voice, audio in self.renderings.items()}
        self.references = {
            voice: (
                statistics.median(pitch(audio) for audio in self.renderings[voice][:20]),
                np.mean([timbre(audio) for audio in self.renderings[voice]], axis=0),
            )
            for voice in VOICES
        }

    def audio_tokenizer(self) -> dict[str, float]:
        """Encode and decode the renderings."""
        right = []
        for index in range(len(self.sentences)):
            voice = VOICES[index % len(VOICES)]
            codes = self.engine.audio_tokenizer.encode(self.renderings[voice][index], SAMPLING_RATE)
            sound = self.engine.audio_tokenizer.decode(codes).numpy()
            right.append(_nearest(sound, self.spectrograms[voice]) == index)
        return {"own original is nearest": _share(right)}

    def speech(self) -> dict[str, float]:
        """Speak the sentences, the voice named in the scene."""
        right, stopped, durations, voices, ratios, took, spoken = [], [], [], [], [], 0.0, 0.0
        for index, text in enumerate(self.sentences):
            voice = VOICES[index % len(VOICES)]
            start = time.perf_counter()
            speech = self.engine.speak(text, voice=Voice(profile=voice.profile), seed=index, **self.options)
            took, spoken = took + time.perf_counter() - start, spoken + speech.duration
            ratios.append(speech.duration / (len(self.renderings[voice][index]) / SAMPLING_RATE))
            right.append(_nearest(speech.audio, self.spectrograms[voice]) == index)
            stopped.append(speech.finish_reason == "stop")
            durations.append(abs(ratios[-1] - 1) <= TOLERANCE)
            voices.append(self._voice_of(speech) == voice)
        return {
            "own sentence is nearest": _share(right),
            "stops by itself": _share(stopped),
            f"duration within {TOLERANCE:.0%}": _share(durations),
            "median duration, of eSpeak NG's": round(statistics.median(ratios), 3),
            "voice by name": _share(voices),
            "real-time factor": round(took / spoken, 3),
        }

    def cloning(self) -> dict[str, float]:
        """Speak the sentences in the voice of a recording."""
        right, voices = [], []
        recordings = {voice: render(REFERENCE, voice) for voice in VOICES}
        for index, text in enumerate(self.sentences):
            voice = VOICES[index % len(VOICES)]
            speech = self.engine.speak(
                text,
                reference_audio=(recordings[voice], SAMPLING_RATE),
                reference_text=REFERENCE,
                seed=index,
                **self.options,
            )
            right.append(_nearest(speech.audio, self.spectrograms[voice]) == index)
            voices.append(self._voice_of(speech) == voice)
        return {"voice by recording": _share(voices), "own sentence is nearest, cloned": _share(right)}

    def words(self) -> dict[str, float]:
        """Speak single words in a carrier sentence; the candidates are the same carrier with the other words."""
        words = [word for word in read_words() if word.isalpha()]
        words = [words[round(i)] for i in np.linspace(0, len(words) - 1, len(self.sentences))]
        texts = [CARRIER.format(word) for word in words]
        right = []
        for voice in VOICES:
            spectrograms = [mel_spectrogram(render(text, voice)) for text in texts]
            for index in range(VOICES.index(voice), len(texts), len(VOICES)):
                speech = self.engine.speak(
                    texts[index], voice=Voice(profile=voice.profile), seed=index, **self.options
                )
                right.append(_nearest(speech.audio, spectrograms) == index)
        return {"own word is nearest, in a carrier sentence": _share(right)}

    def formats(self, model: Path | None) -> dict[str, float]:
        """Speak the sentences with quantized weights."""
        found = {}
        plain = self.engine
        for format in QUANTIZED_FORMATS:
            self.engine = HiggsAudio.from_pretrained(model, quantization=format)
            found[f"own sentence is nearest, {format}"] = self.speech()["own sentence is nearest"]
        self.engine = plain
        return found

    def _voice_of(self, speech: Speech) -> EspeakVoice | None:
        if not len(speech.audio):
            return None
        return min(VOICES, key=lambda voice: voice_distance(speech.audio, *self.references[voice]))


def cold_start() -> dict[str, float]:
    """Seconds from the command to a WAV of a sentence: the median of three."""
    program = "import sys; from higgs_native.cli import main; main(sys.argv[1:])"
    took = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program, "speak", "Hello and welcome, good morning.", "--seed", "1"]
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([*command, "--out", f"{folder}/out.wav"], check=True, capture_output=True)
            took.append(time.perf_counter() - start)
    return {"cold start, seconds": round(statistics.median(took), 2)}


def _nearest(audio: np.ndarray, spectrograms: Sequence[torch.Tensor]) -> int:
    if len(audio) < SAMPLING_RATE // 25:
        return -1
    return int(warped_distances(mel_spectrogram(audio), spectrograms).argmin())


def _share(outcomes: list[bool]) -> float:
    return round(sum(outcomes) / len(outcomes), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="another checkpoint than the embedded voice")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="24 sentences")
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--ras-win-len", type=int, default=7)
    parts = "audio_tokenizer", "speech", "cloning", "words", "formats", "cold_start"
    parser.add_argument("--only", nargs="*", choices=parts)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()

    options = {"temperature": args.temperature, "ras_win_len": args.ras_win_len, "max_new_tokens": 400}
    report = Report(HiggsAudio.from_pretrained(args.model), 24 if args.quick else args.sentences, options)
    measurements = {
        "audio_tokenizer": report.audio_tokenizer,
        "speech": report.speech,
        "cloning": report.cloning,
        "words": report.words,
        "formats": lambda: report.formats(args.model),
        "cold_start": cold_start,
    }
    figures: dict[str, Any] = {"sentences": len(report.sentences), "options": options}
    for name, part in measurements.items():
        if args.only and name not in args.only:
            continue
        found = part()
        for key, value in found.items():
            print(f"{key + ':':<50}{value}", flush=True)
        figures |= found
    if args.json:
        write_json(args.json, figures)
    else:
        print(machine()["processor"], torch.get_num_threads(), "threads")


if __name__ == "__main__":
    main()
