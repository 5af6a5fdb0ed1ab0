"""English text to phonemes, for a voice that reads them: dictionary, rules and guesses from one folder."""

import itertools
import lzma
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from higgs_native.english.guess import Guesser
from higgs_native.english.normalize import normalize
from higgs_native.english.pronunciation import VERBATIM, Entry, Pronouncer


DICTIONARY_FILE, GUESSER_FILE = "pronunciations.tsv.xz", "guesser.safetensors"
ACCENTS = ("us", "gb")

_MAX_BYTES = 128 << 20
"""Maximum size of an unpacked dictionary; the embedded voice's has 8 MB."""
_GUESSES = 4096
"""Maximum number of guesses that are kept per accent: a book repeats its names, and a guess takes 3 ms."""
# White space before these begins where it does, so that it is searched once.
_SPACE = r"(?:(?<!\s)\s+)?"
_VERBATIM = re.compile(rf"({_SPACE}{VERBATIM.pattern.replace('(', '(?:')}\s*)")
_SPEAKER = re.compile(rf"({_SPACE}\[SPEAKER\d+\]\s*)")


def write_dictionary(path: Path, accents: Mapping[str, Mapping[str, Entry]]) -> None:
    """Write the entries of all accents: a line a word, tabs between, and `TAG=phonemes|...` where tags decide."""
    words = sorted(set().union(*(accents[accent] for accent in ACCENTS)), key=str.encode)
    lines = ["\t".join([word, *(_written(accents[accent].get(word)) for accent in ACCENTS)]) for word in words]
    path.write_bytes(lzma.compress("\n".join([*lines, ""]).encode(), preset=9 | lzma.PRESET_EXTREME))


def read_dictionary(path: Path) -> dict[str, Mapping[str, Entry]]:
    """Entries by accent and word.

    Raises:
        lzma.LZMAError, ValueError: the file is damaged, or unpacks to more than `_MAX_BYTES`.
    """
    unpacker = lzma.LZMADecompressor(memlimit=_MAX_BYTES)
    lines = unpacker.decompress(path.read_bytes(), _MAX_BYTES)
    if not unpacker.eof:
        raise ValueError(f"{path.name} must unpack to at most {_MAX_BYTES} bytes, got more, or a part of a file")
    if not lines.endswith(b"\n"):
        raise ValueError(f"{path.name} must end with a line break, got a cut line")
    return {accent: _Entries(lines, column) for column, accent in enumerate(ACCENTS, start=1)}


class _Entries(Mapping[str, Entry]):
    """One accent's column of sorted lines, searched as they are: to split 200,000 lines takes half a second."""

    def __init__(self, lines: bytes, column: int) -> None:
        self._lines, self._column = lines, column

    def __getitem__(self, word: str) -> Entry:
        wanted = word.encode()
        first, last = 0, len(self._lines)
        while first < last:
            middle = self._lines.rfind(b"\n", 0, (first + last) // 2) + 1
            end = self._lines.index(b"\n", middle)
            found, _, rest = self._lines[middle:end].partition(b"\t")
            if found == wanted:
                return self._entry(word, rest.decode(errors="replace"))
            if found < wanted:
                first = end + 1
            else:
                last = middle
        raise KeyError(word)

    def _entry(self, word: str, rest: str) -> Entry:
        written = next(itertools.islice(rest.split("\t"), self._column - 1, None), "")
        if not written:
            raise KeyError(word)
        if "=" not in written:
            return written
        return {tag: sounds for tag, _, sounds in (pair.partition("=") for pair in written.split("|"))}

    def __iter__(self) -> Iterator[str]:
        for line in self._lines.decode().splitlines():
            columns = line.split("\t")
            if columns[self._column]:
                yield columns[0]

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _written(entry: Entry | None) -> str:
    if isinstance(entry, dict):
        return "|".join(f"{tag}={phonemes}" for tag, phonemes in entry.items() if phonemes)
    return entry or ""


class Reader:
    """Reads text in either accent.

    Args:
        folder: what `write_dictionary` wrote, and a guesser.
    """

    def __init__(self, folder: Path) -> None:
        self._guesser = Guesser.load(folder / GUESSER_FILE)
        entries = read_dictionary(folder / DICTIONARY_FILE)
        self._pronouncers = {
            accent: Pronouncer(entries[accent], self._unknown(accent == "gb"), accent == "gb") for accent in ACCENTS
        }

    def phonemes(self, text: str, accent: str = "us") -> tuple[str, list[str]]:
        """Phonemes of a text; `[SPEAKER0]` and the like stay where they are, as does what `[[...]]` holds.

        Returns:
            The phonemes, and the words that can't be read: of other scripts.
        """
        pronouncer, parts, missing = self._pronouncers[accent], [], []
        for part in _SPEAKER.split(text):
            if _SPEAKER.fullmatch(part):
                parts.append(part)
            elif part.strip():
                words = (piece if _VERBATIM.fullmatch(piece) else normalize(piece) for piece in _VERBATIM.split(part))
                spoken, unread = pronouncer.phonemes("".join(words))
                parts.append(spoken)
                missing += unread
        return "".join(parts).strip(), missing

    def _unknown(self, british: bool) -> Callable[[str], str | None]:
        @lru_cache(_GUESSES)
        def guess(word: str) -> str | None:
            guessed: list[str] = []
            for part in re.split(r"[^\w]", word):
                phonemes = self._guesser.guess(part, british)
                if part and not phonemes:
                    return None
                guessed.append(phonemes)
            return "".join(guessed)

        return guess
