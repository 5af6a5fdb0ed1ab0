"""Write `spectrograms.safetensors` and `sentences.json`: held-out sentences as eSpeak NG speaks them in two voices.

python tests/golden/embedded_voice/make.py
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file


ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "examples" / "train_voice"), str(ROOT)]
from espeak import VOICES, render  # noqa: E402
from sentences import held_out_sentences  # noqa: E402

from benchmarks.tools.speech_distance import mel_spectrogram  # noqa: E402


SENTENCES, PROFILES = 20, ("feminine", "masculine")


def main() -> None:
    folder = Path(__file__).parent
    texts = held_out_sentences(SENTENCES, seed=2)
    voices = [voice for voice in VOICES if voice.profile in PROFILES]
    # A decibel is fine enough, and makes a byte.
    spectrograms = {
        f"{voice.profile}.{index:02}": mel_spectrogram(render(text, voice)).round().clamp(-127, 127).char()
        for voice in voices
        for index, text in enumerate(texts)
    }
    save_file(spectrograms, folder / "spectrograms.safetensors")
    (folder / "sentences.json").write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
