"""Clone a voice from a recording.

    python examples/clone_voice.py "Hello there." --reference-audio voice.wav --reference-text "Its words."

Without a recording, one is generated first: a described voice speaks a sentence (`reference.wav`), which is then
cloned. This is also a way to keep a voice that the model has invented.
"""

import argparse

from higgs_native import HiggsAudio, Voice, exit_on_bad_input
from higgs_native.audio.files.writing import check_output_path


REFERENCE_TEXT = "My name is on the list, and my house is on the hill."


@exit_on_bad_input()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="The train to the city leaves at seven in the morning.")
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--reference-audio", help="5 to 15 seconds of one speaker; default: generated")
    parser.add_argument("--reference-text", help="the words spoken in it, which make cloning closer")
    parser.add_argument("--profile", default="masculine", help="the voice of the generated recording")
    parser.add_argument("--out", default="clone_voice.wav")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    check_output_path(args.out)  # fails before the work, not after it
    engine = HiggsAudio.from_pretrained(args.model)
    reference_audio, reference_text = args.reference_audio, args.reference_text
    if reference_audio is None:
        reference_audio, reference_text = "reference.wav", REFERENCE_TEXT
        engine.speak(reference_text, voice=Voice(profile=args.profile), seed=args.seed).save(reference_audio)
    speech = engine.speak(args.text, reference_audio=reference_audio, reference_text=reference_text, seed=args.seed)
    speech.save(args.out)
    print(f"{args.out}: {speech.duration:.2f} s in the voice of {reference_audio}")


if __name__ == "__main__":
    main()
