"""Sentences of real texts, with words that the dictionary knows."""

import re
from pathlib import Path

from higgs_native.english.normalize import normalize
from higgs_native.english.pronunciation import Pronouncer


SOURCES = {"austen": 7, "bible": 4, "factbook": 6, "fortunes": 3}
"""Texts, and how many of twenty real sentences each gives."""

_TITLES = frozenset(
    [
        "Mr.",
        "Mrs.",
        "Ms.",
        "Dr.",
        "Prof.",
        "Rev.",
        "Gen.",
        "Col.",
        "Capt.",
        "Lt.",
        "Sgt.",
        "St.",
        "Mt.",
        "No.",
        "vs.",
        "e.g.",
        "i.e.",
        "est.",
        "approx.",
    ]
)
_ALLOWED = re.compile(r"[A-Za-z0-9 ,.;:!?'\"()$%&/—-]+")
_WORDS = 3, 70


def split_sentences(paragraph: str) -> list[str]:
    """Cut a paragraph behind full stops, question and exclamation marks that end a sentence."""
    sentences, words = [], []
    for word in paragraph.replace("--", " — ").replace("_", "").split():
        words.append(word)
        bare = word.rstrip("\"')”’")
        if bare.endswith((".", "!", "?")) and bare not in _TITLES and not re.fullmatch(r"\(?(?:[A-Za-z]\.)+", bare):
            sentences.append(" ".join(words))
            words = []
    if words:
        sentences.append(" ".join(words))
    return sentences


def clean(sentence: str) -> str | None:
    """The sentence without unbalanced quotes, or None where it is no sentence."""
    sentence = re.sub(r"\s+", " ", sentence.strip(" \"'—"))
    if sentence.count('"') % 2 or sentence.count("(") != sentence.count(")"):
        sentence = re.sub(r"[\"()]", "", sentence)
    if not _WORDS[0] <= len(sentence.split()) <= _WORDS[1] or not _ALLOWED.fullmatch(sentence):
        return None
    if sum(word.isalpha() for word in re.findall(r"\w+", sentence)) < max(3, 3 * len(re.findall(r"\d+", sentence))):
        return None  # a table's row
    if sum(letter.isupper() for letter in sentence) > 0.3 * len(sentence):
        return None
    if not sentence[0].isupper():
        sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence[-1] in ".!?" else sentence.rstrip(",;:") + "."


def read_sentences(materials: Path, source: str, pronouncers: list[Pronouncer]) -> list[str]:
    """All different sentences of a text whose words every pronouncer knows, in the order of the text."""
    found = {}
    for paragraph in (materials / "texts" / f"{source}.txt").read_text(encoding="utf-8").splitlines():
        for sentence in split_sentences(paragraph):
            cleaned = clean(sentence)
            if cleaned is None or cleaned in found:
                continue
            normalized = normalize(cleaned)
            if not any(pronouncer.phonemes(normalized)[1] for pronouncer in pronouncers):
                found[cleaned] = None
    return list(found)
