"""Write what the teacher will say: text, phonemes, voice and speed of each utterance.

    python -m recipe.texts

Utterance `i` is a function of the seed, of `i`, and of the materials. Voices and kinds of text are mixed from the
first utterance on, so that any beginning of the list is a sample of the whole.
"""

import argparse
import json
import math
import random
import re
import zlib
from pathlib import Path

from higgs_native.english.normalize import normalize
from higgs_native.english.pronunciation import Pronouncer
from recipe.composed import Composer
from recipe.dictionary import accent_of, read_pronouncers
from recipe.folder import add_folder_option, write_text
from recipe.sentences import SOURCES, read_sentences, split_sentences


UTTERANCES = 56000
VOICES = {"af_heart": 40, "af_bella": 12, "am_fenrir": 12, "am_puck": 12, "bf_emma": 12, "bm_george": 12}
"""Voices, and the percentage of utterances that each speaks."""

LONGEST = 330
"""Phonemes of an utterance; about 24 seconds."""

_KINDS = ("real", "words", "real", "composed", "real", "words", "real", "composed")
_HELD_OUT_ONE_IN = 40


def is_held_out(normalized: str) -> bool:
    """Whether a text is for judging only, told by its words: no training may see it in any voice."""
    words = re.findall(r"[\w']+", normalized.lower())
    return zlib.crc32(" ".join(words).encode()) % _HELD_OUT_ONE_IN == 0


class Writer:
    """Writes utterances.

    Args:
        seed: of everything random.
        sentences: real sentences by source.
        composer: of the other sentences.
        pronouncers: by accent.
    """

    def __init__(
        self, seed: int, sentences: dict[str, list[str]], composer: Composer, pronouncers: dict[str, Pronouncer]
    ) -> None:
        self.seed, self.sentences, self.composer, self.pronouncers = seed, sentences, composer, pronouncers
        # Sources take turns as evenly as their shares allow.
        total = sum(SOURCES.values())
        turns = [(((turn + 0.5) / share), name) for name, share in SOURCES.items() for turn in range(share)]
        self._turns = [name for _, name in sorted(turns)]
        self._ranks = [self._turns[:turn].count(name) for turn, name in enumerate(self._turns)]
        assert len(self._turns) == total

    def utterance(self, index: int) -> dict[str, object]:
        """Utterance `index`: where its text, phonemes, voice and speed come from this number alone."""
        rng = random.Random(f"{self.seed} {index}")
        voice = rng.choices(list(VOICES), list(VOICES.values()))[0]
        speed = round(rng.uniform(0.9, 1.1), 3)
        kind = _KINDS[index % len(_KINDS)]
        while True:
            if kind == "real":
                source, text = self._real(index // 2, rng)
            else:
                source = kind
                text = self.composer.words(rng) if kind == "words" else self.composer.sentence(rng)
            pronouncer = self.pronouncers[accent_of(voice)]
            normalized = normalize(text)
            phonemes, missing = pronouncer.phonemes(normalized)
            if len(phonemes) > LONGEST:
                normalized = self._shortened(normalized, pronouncer)
                phonemes, missing = pronouncer.phonemes(normalized)
                text = normalized
            if not missing and 2 <= len(phonemes) <= LONGEST:
                break
            kind = "words"  # the next attempt draws other words
        return {
            "id": index,
            "kind": source,
            "text": text,
            "normalized": normalized,
            "phonemes": phonemes,
            "voice": voice,
            "speed": speed,
            "held_out": is_held_out(normalized),
        }

    def _real(self, count: int, rng: random.Random) -> tuple[str, str]:
        """A sentence of a source, each once before any comes twice; short ones get company now and then."""
        rounds, turn = divmod(count, len(self._turns))
        source = self._turns[turn]
        sentences = self.sentences[source]
        number = rounds * SOURCES[source] + self._ranks[turn]
        # An affine map with a multiplier that shares no factor with the length visits every sentence once.
        multiplier = int(len(sentences) * 0.618) or 1
        while math.gcd(multiplier, len(sentences)) != 1:
            multiplier += 1
        index = (number * multiplier + self.seed) % len(sentences)
        text = sentences[index]
        if len(text) < 100 and rng.random() < 0.3:
            text = f"{text} {sentences[(index + 1) % len(sentences)]}"
        return source, text

    @staticmethod
    def _shortened(normalized: str, pronouncer: Pronouncer) -> str:
        """As many sentences or clauses from the beginning as are not too long."""
        for pieces in (split_sentences(normalized), re.findall(r"[^,;:—]+[,;:—]?", normalized)):
            for count in range(len(pieces) - 1, 0, -1):
                text = " ".join(piece.strip() for piece in pieces[:count]).rstrip(",;:— ")
                if len(pronouncer.phonemes(text)[0]) <= LONGEST:
                    return text if text[-1] in ".?!" else f"{text}."
        return normalized


def make_writer(materials: Path, seed: int) -> Writer:
    """A writer with all sentences of the materials."""
    pronouncers = read_pronouncers(materials)
    known = list(pronouncers.values())
    sentences = {source: read_sentences(materials, source, known) for source in SOURCES}
    frequent = (materials / "texts" / "frequent_words.txt").read_text(encoding="utf-8").split()
    return Writer(seed, sentences, Composer(frequent, known), pronouncers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_folder_option(parser)
    parser.add_argument("--utterances", type=int, default=UTTERANCES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    path = options.folder / "utterances.jsonl"
    if path.exists():
        print(f"{path} is there already", flush=True)
        return
    writer = make_writer(options.folder / "materials", options.seed)
    for source, sentences in writer.sentences.items():
        print(f"{source}: {len(sentences)} sentences", flush=True)
    lines = [json.dumps(writer.utterance(index), ensure_ascii=False) for index in range(options.utterances)]
    write_text(path, "\n".join(lines) + "\n")
    print(f"{len(lines)} utterances: {path}", flush=True)


if __name__ == "__main__":
    main()
