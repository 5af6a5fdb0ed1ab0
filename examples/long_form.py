"""Speak a book: `python examples/long_form.py [BOOK.txt]` writes book.wav, and goes on where it was cut off.

Without a book a short text is spoken, and without --model by the small voice that comes with the package.
"""

import argparse
from pathlib import Path

from higgs_native import HiggsAudio, LongSpeech


TEXT = """The Morning

The sun rises in the east. The water is cold and clear, and the children play in the garden.

"Good morning," she said. My mother and my father live in a small house near the river. They drink tea every day."""

parser = argparse.ArgumentParser(description="Speak a long text.")
parser.add_argument("book", nargs="?", type=Path, help="a text file")
parser.add_argument("--out", default="book.wav")
parser.add_argument("--model", help="a checkpoint's folder, or its name on the Hub")
parser.add_argument("--scene", help="where it is spoken, or how")
arguments = parser.parse_args()

text = arguments.book.read_text(encoding="utf-8") if arguments.book else TEXT
engine = HiggsAudio.from_pretrained(arguments.model)
speech = LongSpeech(engine, text, folder=f"{arguments.out}.parts", scene=arguments.scene)
for chunk in speech:
    # A player could start here: `chunk.audio` is a piece of the whole, the pause before it included.
    print(
        f"{chunk.index + 1} of {len(speech)}: {chunk.duration:.2f} s, {len(chunk.attempts)} tried: {chunk.text.text}"
    )
    for fault in chunk.faults:
        print(f"  the best one has a fault: {fault}")
speech.save(arguments.out)
print(f"{arguments.out} is written; the chunks are in {speech.folder}")
