"""Sentences of random words: what the embedded voice is trained on, and what it is tested on.

The words stand in random order, so that a word can't be guessed from those before it: a model that does not read the
text can't do well. Whether a sentence is held out is a property of its letters alone; training never sees one that is.
"""

import random
import zlib
from collections.abc import Iterator
from pathlib import Path


HELD_OUT_SHARE = 0.02
"""Of all sentences of `HELD_OUT_LENGTHS` words."""
HELD_OUT_LENGTHS = range(4, 10)

_COMMA_SHARE = 0.06
# Where words repeat: so many are among the commonest, and so many sentences say one of their own words twice.
_COMMONEST = ("the", "a", "and", "to", "of", "in", "is", "it", "you", "i", "that", "for")
_COMMON_SHARE, _TWICE_SHARE = 0.4, 0.25
_ENDINGS = (".", "?", "!")
_ENDING_SHARES = (0.84, 0.1, 0.06)


def read_words() -> list[str]:
    """Return the word list: lower-case words and numerals, sorted, each once."""
    lines = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines()
    return sorted({word for line in lines if not line.startswith("#") for word in line.split()})


def is_held_out(sentence: str) -> bool:
    """Whether `sentence` is kept from training."""
    words = sentence.replace(",", " ").rstrip("".join(_ENDINGS)).split()
    digest = zlib.crc32(" ".join(words).encode())
    return len(words) in HELD_OUT_LENGTHS and digest < HELD_OUT_SHARE * 2**32


def compose(words: list[str], length: int, generator: random.Random, repeating: bool = False) -> str:
    """Compose a sentence of `length` random words, with a comma here and there.

    Of a list of many words hardly any comes twice, as words do in real sentences; where `repeating`, some do.
    """
    chosen = generator.choices(words, k=length)
    if repeating:
        chosen = [generator.choice(_COMMONEST) if generator.random() < _COMMON_SHARE else word for word in chosen]
        if length > 1 and generator.random() < _TWICE_SHARE:
            first, second = generator.sample(range(length), 2)
            chosen[second] = chosen[first]
    commas = ["," * (generator.random() < _COMMA_SHARE) for _ in chosen[1:]] + [""]
    body = " ".join(word + comma for word, comma in zip(chosen, commas, strict=True))
    return body + generator.choices(_ENDINGS, _ENDING_SHARES)[0]


def sentences(seed: int, lengths: list[int], held_out: bool = False, repeating: bool = False) -> Iterator[str]:
    """Yield random sentences without end, of lengths drawn from `lengths`: only those held out, or only the others."""
    words = read_words()
    generator = random.Random(seed)
    while True:
        sentence = compose(words, generator.choice(lengths), generator, repeating)
        if is_held_out(sentence) == held_out:
            yield sentence


def held_out_sentences(count: int, seed: int = 1) -> list[str]:
    """The first `count` held-out sentences, no two alike."""
    found: dict[str, None] = {}
    for sentence in sentences(seed, list(HELD_OUT_LENGTHS), held_out=True):
        found[sentence] = None
        if len(found) == count:
            break
    return list(found)
