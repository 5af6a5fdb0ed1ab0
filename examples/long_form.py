"""Speak a long text, chunk by chunk. An interrupted run resumes.

    python examples/long_form.py book.txt --out book.wav
    python examples/long_form.py book.txt --model bosonai/higgs-audio-v2-generation-3B-base

Without a book, a short text is spoken.
"""

import argparse
from pathlib import Path

from higgs_native import HiggsAudio, LongSpeech, exit_on_bad_input
from higgs_native.audio.files.writing import check_output_path


TEXT = """The Morning

The sun rises in the east. The water is cold and clear, and the children play in the garden.

"Good morning," she said. My mother and my father live in a small house near the river. They drink tea every day."""


@exit_on_bad_input(OSError, UnicodeDecodeError)  # an unreadable book
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("book", nargs="?", type=Path, help="a text file")
    parser.add_argument("--out", default="book.wav")
    parser.add_argument("--model", help="a folder or a Hub name; default: the embedded voice")
    parser.add_argument("--scene", help="where or how it is spoken")
    args = parser.parse_args()

    check_output_path(args.out)  # fails before the work, not after it
    text = args.book.read_text(encoding="utf-8") if args.book else TEXT
    engine = HiggsAudio.from_pretrained(args.model)
    speech = LongSpeech(engine, text, folder=f"{args.out}.parts", scene=args.scene)
    for chunk in speech:
        # A player could start here: `chunk.audio` is a part of the speech, with the pause before it.
        number = f"{chunk.index + 1} of {len(speech)}"
        print(f"{number}: {chunk.duration:.2f} s, attempts: {len(chunk.attempts)}: {chunk.text.text}")
        for failure in chunk.failures:
            print(f"  failure of the best attempt: {failure}")
    speech.save(args.out)
    print(f"{args.out}: {len(speech)} chunks, kept in {speech.folder}")


if __name__ == "__main__":
    main()
