"""Speak a book: `python examples/long_form.py [BOOK.txt]` writes book.wav, and goes on where it was cut off.

Without a book a short text is spoken, and without --model by the small voice that comes with the package.
"""

import argparse
from pathlib import Path

from higgs_native import HiggsAudio, LongSpeech, exit_on_bad_input
from higgs_native.audio.writing import check_output_path


TEXT = """The Morning

The sun rises in the east. The water is cold and clear, and the children play in the garden.

"Good morning," she said. My mother and my father live in a small house near the river. They drink tea every day."""


@exit_on_bad_input(OSError, UnicodeDecodeError)  # a book that can't be read
def main() -> None:
    parser = argparse.ArgumentParser(description="Speak a long text.")
    parser.add_argument("book", nargs="?", type=Path, help="a text file")
    parser.add_argument("--out", default="book.wav")
    parser.add_argument("--model", help="a checkpoint's folder, or its name on the Hub")
    parser.add_argument("--scene", help="where it is spoken, or how")
    args = parser.parse_args()

    check_output_path(args.out)  # before the work, not after it
    text = args.book.read_text(encoding="utf-8") if args.book else TEXT
    engine = HiggsAudio.from_pretrained(args.model)
    speech = LongSpeech(engine, text, folder=f"{args.out}.parts", scene=args.scene)
    for chunk in speech:
        # A player could start here: `chunk.audio` is a piece of the whole, the pause before it included.
        place = f"{chunk.index + 1} of {len(speech)}"
        print(f"{place}: {chunk.duration:.2f} s, {len(chunk.attempts)} tried: {chunk.text.text}")
        for failure in chunk.failures:
            print(f"  the best one failed: {failure}")
    speech.save(args.out)
    print(f"{args.out} is written; the chunks are in {speech.folder}")


if __name__ == "__main__":
    main()
