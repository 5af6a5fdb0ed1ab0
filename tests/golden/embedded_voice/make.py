"""Write `spectrograms.safetensors` and `sentences.json`: held-out sentences as the voice's teacher speaks them.

python tests/golden/embedded_voice/make.py

Needs the steps `render` and `codes` of `examples/train_voice`.
"""

import argparse
import json
import sys
from pathlib import Path

from safetensors.torch import save_file


ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "examples" / "train_voice"), str(ROOT)]
from recipe.folder import add_folder_option  # noqa: E402
from recipe.phoneme_tokenizer import VOICES  # noqa: E402
from recipe.report import held_out  # noqa: E402

from benchmarks.tools.speech_distance import SAMPLING_RATE, mel_spectrogram, pitch  # noqa: E402


SENTENCES, CANDIDATES = 20, 60
LONGEST = 5.5
"""Seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    folder = Path(__file__).parent
    found = [
        (utterance, audio)
        for utterance, audio, _ in held_out(parser.parse_args().folder, CANDIDATES, pitch=True)
        if len(audio) <= LONGEST * SAMPLING_RATE
    ][:SENTENCES]
    names = {teacher: name for name, teacher in VOICES.items()}
    sentences = [
        {"text": utterance["text"], "voice": names[utterance["voice"]], "pitch": round(pitch(audio))}
        for utterance, audio in found
    ]
    # A decibel is fine enough, and makes a byte.
    spectrograms = {
        f"{index:02}": mel_spectrogram(audio).round().clamp(-127, 127).char() for index, (_, audio) in enumerate(found)
    }
    save_file(spectrograms, folder / "spectrograms.safetensors")
    text = json.dumps(sentences, indent=1, ensure_ascii=False)
    (folder / "sentences.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
