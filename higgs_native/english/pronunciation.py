"""Pronunciation of English: words become the phonemes that the embedded voice reads.

A phoneme is one character. The alphabet is the dictionary's: `A I O Q W Y` are the diphthongs of *day, my, go*
(American, British), *now, boy*; `ʤ ʧ` are affricates, `ᵊ ᵻ` reduced vowels, `T` is the flap of American *water*; `ˈ ˌ`
come before a stressed vowel. Words are parted by spaces, and punctuation follows its word.
"""

import re
from collections.abc import Callable, Mapping


Entry = str | dict[str, str | None]
"""Phonemes, or phonemes by part of speech with "DEFAULT" among them."""

PAUSES = ",.!?;:—…"
"""Punctuation that is heard."""

VERBATIM = re.compile(r"\[\[([^\[\]]*)\]\]")
"""Phonemes in a text, which are read as they are."""

_VOWELS = frozenset("AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻɐ")
_STRESSES = "ˈˌ"
_FLAPPING = frozenset("AIOWYiuæɑəɛɪɹʊʌ")
_TOKEN = re.compile(r"\[\[[^\[\]]*\]\]|[^\W\d_]+(?:['’][^\W\d_]+)*['’]?|[,.!?;:…—]|[^\s]")

_DETERMINERS = frozenset(
    [
        "the",
        "a",
        "an",
        "this",
        "that",
        "these",
        "those",
        "my",
        "your",
        "his",
        "her",
        "its",
        "our",
        "their",
        "no",
        "some",
        "any",
        "every",
        "each",
        "of",
        "in",
        "on",
        "at",
        "by",
        "for",
        "with",
        "from",
        "more",
        "much",
        "many",
    ]
)
_VERB_HERALDS = frozenset(
    [
        "to",
        "i",
        "you",
        "we",
        "they",
        "he",
        "she",
        "it",
        "who",
        "will",
        "would",
        "shall",
        "should",
        "can",
        "could",
        "may",
        "might",
        "must",
        "do",
        "does",
        "did",
        "don't",
        "doesn't",
        "didn't",
        "won't",
        "can't",
        "couldn't",
        "wouldn't",
        "shouldn't",
        "let's",
        "please",
        "not",
        "never",
    ]
)
_PARTICIPLE_HERALDS = frozenset(
    [
        "have",
        "has",
        "had",
        "having",
        "was",
        "were",
        "is",
        "are",
        "been",
        "be",
        "being",
        "i've",
        "we've",
        "you've",
        "they've",
    ]
)
_NO_VERB_BEFORE = frozenset(["he", "she", "it"])


class Pronouncer:
    """Words to phonemes.

    Args:
        entries: the dictionary of one accent; a word that is in it with a capital only is a name.
        unknown: called for a word that neither the dictionary nor its rules know, in lower case; None leaves it out.
        british: the accent of the entries.
    """

    def __init__(
        self, entries: Mapping[str, Entry], unknown: Callable[[str], str | None] | None = None, british: bool = False
    ) -> None:
        self.entries, self.unknown, self.british = entries, unknown, british

    def phonemes(self, text: str) -> tuple[str, list[str]]:
        """Phonemes of normalized text, which may hold `[[phonemes]]`.

        Returns:
            The phonemes, and the words that nothing is known of.
        """
        text = re.sub(r"[()]", ",", text.replace("’", "'"))
        tokens = [
            token
            for token in _TOKEN.findall(text)
            if token[0].isalpha() or token in PAUSES or VERBATIM.fullmatch(token)
        ]
        words = [token.rstrip("'") if not token.endswith("s'") else token for token in tokens]
        shouted = sum(w.isupper() for w in words if len(w) > 2) > 3
        parts: list[str] = []
        missing = []
        after = None  # the phonemes of the next word of the same phrase
        for index in reversed(range(len(words))):
            word = words[index]
            if word in PAUSES:
                parts.append(word)
                after = None
                continue
            verbatim = VERBATIM.fullmatch(word)
            spoken = verbatim[1].strip() if verbatim else self._word(words, index, after, shouted)
            if spoken is None:
                missing.append(word)
                spoken = ""
            parts.append(spoken)
            after = spoken
        joined = ""
        for part in reversed(parts):
            if part in PAUSES:
                # If several marks follow each other, only the last is heard.
                joined = joined.rstrip(PAUSES) + (part if joined else "")
            elif part:
                joined += (" " if joined else "") + part
        # The teacher's alphabet has its own sign for a flap, and no glottal stop.
        return joined.replace("ɾ", "T").replace("ʔ", "t"), missing[::-1]

    def _word(self, words: list[str], index: int, after: str | None, shouted: bool) -> str | None:
        word = words[index]
        lower = word.lower()
        before = words[index - 1].lower() if index else ""
        vowel = None if after is None else next((c in _VOWELS for c in after if c not in _STRESSES), False)
        if lower == "the":
            return "ði" if vowel else "ðə"
        if len(word) == 1:
            if word == "a" or (word == "A" and not self._among_letters(words, index)):
                return "ɐ"
            if word == "I" and not self._among_letters(words, index):
                return "ˌI"
            return self._spelled(word)
        if lower == "to":
            return ("tu" if vowel is None else "tʊ" if vowel else "tə") if word != "TO" or shouted else self.get("to")
        if lower == "an":
            return "ɐn"
        if lower == "in":
            return "ˈɪn" if vowel is None else "ɪn"
        if lower == "am" and vowel is not None:
            return "ɐm"
        if lower == "used":
            following = words[index + 1].lower() if index + 1 < len(words) else ""
            return "jˈust" if following == "to" and before not in _PARTICIPLE_HERALDS else "jˈuzd"
        if word.isupper() and not shouted:
            return self._capitals(word)
        entry = self.entries.get(lower)
        if vowel is None and isinstance(entry, dict) and entry.get("None"):
            return entry["None"]  # a function word at the end of a phrase is stressed
        tag = self._tag(words, index)
        return self.get(word, tag) or (self.unknown(lower) if self.unknown else None)

    @staticmethod
    def _among_letters(words: list[str], index: int) -> bool:
        """Whether a capital is next to another one, and so is spelled."""
        beside = [words[i] for i in (index - 1, index + 1) if 0 <= i < len(words)]
        return any(len(word) == 1 and word.isupper() for word in beside)

    @staticmethod
    def _tag(words: list[str], index: int) -> str:
        """A guess at the part of speech, from the word before; for words whose sound depends on it."""
        before = words[index - 1].lower() if index else ""
        following = words[index + 1].lower() if index + 1 < len(words) else ""
        if before in _PARTICIPLE_HERALDS:
            return "VBN"
        if before in _VERB_HERALDS:
            return "VBD" if before in _NO_VERB_BEFORE else "VERB"
        if before in _DETERMINERS:
            return "NOUN"
        if index == 0 and following in _DETERMINERS:
            return "VERB"
        return "DEFAULT"

    def get(self, word: str, tag: str = "DEFAULT") -> str | None:
        """Phonemes of a word by the dictionary and its inflections, None if they don't know it."""
        for written in dict.fromkeys((word, word.lower(), word.capitalize())):
            found = self._entry(written, tag)
            if found:
                return found
        lower = word.lower()
        if lower.endswith("s'"):
            return self.get(lower[:-1], tag)
        for inflect in (self._with_s, self._with_ed, self._with_ing):
            found = inflect(lower, tag)
            if found:
                return found
        return None

    def _entry(self, word: str, tag: str) -> str | None:
        entry = self.entries.get(word)
        if not isinstance(entry, dict):
            return entry
        if tag in ("VBN", "VBD") and tag not in entry:
            tag = "VERB"
        return entry.get(tag) or entry.get("DEFAULT")

    def _capitals(self, word: str) -> str | None:
        """An acronym as a word if the dictionary has it so, else letter by letter; emphasis as the word."""
        entry = self.entries.get(word)
        if isinstance(entry, str):
            return entry
        if len(word) > 5 or (len(word) > 3 and self.get(word)):
            return self.get(word) or (self.unknown(word.lower()) if self.unknown else None)
        if len(word) == 2 and isinstance(entry, dict) and entry.get("NOUN") and entry["DEFAULT"]:
            return entry["DEFAULT"]
        return self._spelled(word)

    def _spelled(self, word: str) -> str | None:
        """The names of letters, the last of them stressed."""
        names = [self.entries.get(letter.upper()) for letter in word]
        known = [name for name in names if isinstance(name, str)]
        if not known or len(known) < len(names):
            return None
        weak = [name.replace("ˈ", "ˌ") for name in known[:-1]]
        return "".join([*weak, known[-1]])

    def _with_s(self, word: str, tag: str) -> str | None:
        if len(word) < 3 or not word.endswith("s") or word.endswith("ss"):
            return None
        stems = [word[:-1]]
        if word.endswith("'s"):
            stems = [word[:-2]]
        elif word.endswith("ies"):
            stems.append(f"{word[:-3]}y")
        elif word.endswith("es"):
            stems.append(word[:-2])
        stem = self._first(stems, tag)
        if not stem:
            return None
        if stem[-1] in "ptkfθ":
            return f"{stem}s"
        return stem + (("ɪz" if self.british else "ᵻz") if stem[-1] in "szʃʒʧʤ" else "z")

    def _with_ed(self, word: str, tag: str) -> str | None:
        if len(word) < 4 or not word.endswith("ed"):
            return None
        stem = self._first([word[:-1], word[:-2], *_undoubled(word[:-2])], tag)
        if not stem:
            return None
        if stem[-1] in "td":
            flapped = stem[-1] == "t" and not self.british and len(stem) > 1 and stem[-2] in _FLAPPING
            return (f"{stem[:-1]}ɾ" if flapped else stem) + ("ɪd" if self.british else "ᵻd")
        return stem + ("t" if stem[-1] in "pkfθʃsʧ" else "d")

    def _with_ing(self, word: str, tag: str) -> str | None:
        if len(word) < 5 or not word.endswith("ing"):
            return None
        stem = self._first([word[:-3], f"{word[:-3]}e", *_undoubled(word[:-3])], tag)
        if not stem or (self.british and stem[-1] in "əː"):
            return None
        flapped = stem[-1] == "t" and not self.british and len(stem) > 1 and stem[-2] in _FLAPPING
        return (f"{stem[:-1]}ɾ" if flapped else stem) + "ɪŋ"

    def _first(self, stems: list[str], tag: str) -> str | None:
        found = (self._entry(stem, tag) or self._entry(stem.capitalize(), tag) for stem in stems if len(stem) > 1)
        return next((phonemes for phonemes in found if phonemes), None)


def _undoubled(stem: str) -> list[str]:
    return [stem[:-1]] if len(stem) > 2 and stem[-1] == stem[-2] else []
