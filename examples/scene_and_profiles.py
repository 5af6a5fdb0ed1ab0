"""Describe the surroundings and the voice in words.

    python examples/scene_and_profiles.py --scene "Audio is recorded from a quiet room." --voice profile:puck

A folder of voices holds recordings with their words, and descriptions (`profile.yaml`); `higgs-native voices FOLDER`
lists them. A description also works without a folder: `Voice(profile="male; british accent; speaks slowly")`.
The embedded voice knows the four descriptions in `voices`, and was trained without surroundings.
"""

import argparse
from pathlib import Path

from higgs_native import HiggsAudio, exit_on_bad_input, find_voice, list_voices
from higgs_native.audio.files.writing import check_output_path


VOICES_FOLDER = Path(__file__).with_name("voices")


@exit_on_bad_input()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="The old house stands between the river and the forest.")
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--scene", help="where or how it is spoken")
    parser.add_argument("--voice", default="profile:george", help="a voice of the folder")
    parser.add_argument("--voices-folder", type=Path, default=VOICES_FOLDER)
    parser.add_argument("--out", default="scene_and_profiles.wav")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    check_output_path(args.out)  # fails before the work, not after it
    for name, voice in list_voices(args.voices_folder).items():
        print(f"{name}: {voice.profile or voice.reference_text or 'a recording without its words'}")
    voice = find_voice(args.voice, args.voices_folder)
    engine = HiggsAudio.from_pretrained(args.model)
    engine.speak(args.text, voice=voice, scene=args.scene, seed=args.seed).save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
