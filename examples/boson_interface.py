"""Speak through the interface of `boson_multimodal`.

    python examples/boson_interface.py --model bosonai/higgs-audio-v2-generation-3B-base

Code for Boson's package only needs other imports: see docs/compat_boson.md.
"""

import argparse

import soundfile

from higgs_native import exit_on_bad_input
from higgs_native.audio.files.writing import check_output_path
from higgs_native.compat.boson import ChatMLSample, HiggsAudioServeEngine, Message
from higgs_native.manuscript.phonemes import PhonemeReader
from higgs_native.pipeline import EMBEDDED_VOICE


@exit_on_bad_input()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="The sun rises in the east and sets in the west.")
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument(
        "--audio-tokenizer", default="bosonai/higgs-audio-v2-tokenizer", help="the audio tokenizer of --model"
    )
    parser.add_argument("--out", default="boson_interface.wav")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    check_output_path(args.out)  # fails before the work, not after it
    text, model, audio_tokenizer = args.text, args.model, args.audio_tokenizer
    if model is None:  # which reads phonemes
        text = PhonemeReader.from_folder(EMBEDDED_VOICE).spell(text)
        model, audio_tokenizer = str(EMBEDDED_VOICE), str(EMBEDDED_VOICE / "audio_tokenizer")
    engine = HiggsAudioServeEngine(model, audio_tokenizer)
    output = engine.generate(
        chat_ml_sample=ChatMLSample(
            messages=[
                Message(role="system", content="Generate audio following instruction."),
                Message(role="user", content=text),
            ]
        ),
        max_new_tokens=1024,
        temperature=0.3,
        top_p=0.95,
        top_k=50,
        force_audio_gen=True,
        seed=args.seed,
    )
    soundfile.write(args.out, output.audio, output.sampling_rate)
    print(args.out, output.usage)


if __name__ == "__main__":
    main()
