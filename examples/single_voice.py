"""Speak a text into a file.

    python examples/single_voice.py "The sun rises in the east." --out single_voice.wav
    python examples/single_voice.py "Hello there." --model bosonai/higgs-audio-v2-generation-3B-base --seed 1

Without --model, the small voice of the package speaks.
"""

import argparse

from higgs_native import HiggsAudio, exit_on_bad_input
from higgs_native.audio.files.writing import check_output_path


@exit_on_bad_input()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="The sun rises in the east and sets in the west.")
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--out", default="single_voice.wav", help=".wav, .flac, .mp3, .ogg or .opus")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same speech")
    parser.add_argument("--temperature", type=float, default=0.3, help="0 takes the top codes")
    args = parser.parse_args()

    check_output_path(args.out)  # fails before the work, not after it
    engine = HiggsAudio.from_pretrained(args.model)
    speech = engine.speak(args.text, seed=args.seed, temperature=args.temperature)
    speech.save(args.out)
    print(f"{args.out}: {speech.duration:.2f} s, {speech.codes.shape[1]} frames, ended by {speech.finish_reason}")


if __name__ == "__main__":
    main()
