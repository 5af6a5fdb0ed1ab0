"""Speak a dialogue of several speakers.

    python examples/dialogue.py "[SPEAKER0] Where is the key? [SPEAKER1] It is on the table."

The published model speaks the whole dialogue at once, so the speakers adapt to each other. The embedded voice was
trained on one speaker per text, so each of its turns is spoken separately, and the turns are joined.
"""

import argparse
import re
from pathlib import Path

import numpy as np

from higgs_native import HiggsAudio, Voice, exit_on_bad_input, find_voice
from higgs_native.audio.files.writing import check_output_path, writing_audio


DIALOGUE = (
    "[SPEAKER0] What time does the train to the city leave tomorrow?\n"
    "[SPEAKER1] It leaves at seven in the morning, my friend.\n"
    "[SPEAKER0] Thanks, then please call me at six."
)
VOICES_FOLDER = Path(__file__).with_name("voices")
VOICES = "profile:feminine,profile:masculine"
PAUSE_SECONDS = 0.25


@exit_on_bad_input()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default=DIALOGUE)
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--voice", default=VOICES, help="the voices of SPEAKER0, SPEAKER1, ..., separated by commas")
    parser.add_argument("--voices-folder", type=Path, default=VOICES_FOLDER)
    parser.add_argument("--out", default="dialogue.wav")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    check_output_path(args.out)  # fails before the work, not after it
    voices = [find_voice(name, args.voices_folder) for name in args.voice.split(",")]
    speakers = [int(number) for number in re.findall(r"\[SPEAKER(\d+)\]", args.text)]
    tags = ", ".join(f"[SPEAKER{number}]" for number in speakers) or "none"
    if not speakers or max(speakers) >= len(voices):
        parser.error(f"text must have tags from [SPEAKER0] to [SPEAKER{len(voices) - 1}], one per --voice, got {tags}")
    engine = HiggsAudio.from_pretrained(args.model)
    if engine.is_embedded_voice:
        audio = speak_in_turn(engine, args.text, voices, args.seed)
        with writing_audio(args.out, engine.audio_tokenizer.sampling_rate) as file:
            file.write(audio)
    else:
        engine.speak(args.text, voice=voices, seed=args.seed).save(args.out)
    print(args.out)


def speak_in_turn(engine: HiggsAudio, text: str, voices: list[Voice], seed: int) -> np.ndarray:
    """Speak each turn separately, with a pause after it; return the samples, float32."""
    pause = np.zeros(round(PAUSE_SECONDS * engine.audio_tokenizer.sampling_rate), dtype=np.float32)
    pieces = []
    _, *numbers_and_turns = re.split(r"\[SPEAKER(\d+)\]", text)
    for number, turn in zip(numbers_and_turns[::2], numbers_and_turns[1::2], strict=True):
        pieces += [engine.speak(turn, voice=voices[int(number)], seed=seed).audio, pause]
    return np.concatenate(pieces)


if __name__ == "__main__":
    main()
