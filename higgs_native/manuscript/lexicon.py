"""A lexicon: how words are spelled so that they are spoken right.

A file has an entry per line, `nginx = engine x`. Empty lines and lines that begin with `#` are comments. A word, or
several, in lower case matches any case; one with a capital letter matches only itself: `IT = I T` leaves `it` alone.
Only whole words are replaced. For a voice that reads phonemes, a spelling may hold some: `nginx = [[ˈɛnʤən ˈɛks]]`.
"""

import os
from collections.abc import Mapping

import regex

from higgs_native.english.pronunciation import VERBATIM
from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.normalize import check_unicode
from higgs_native.utils.checks import check_instance, expanded_path
from higgs_native.utils.files import read_small_file


_MAX_FILE_BYTES = 4 << 20
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_BREAKS = regex.compile(r"[\r\n\[\]]")


class Lexicon:
    """Replaces words.

    Args:
        entries: spelling by word.

    Raises:
        PromptError: a word or a spelling is empty, no str, or has a bracket or a line break, or a word is given twice.

    Attributes:
        phonemes: the first spelling that holds phonemes; None if there is none.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        check_instance("lexicon", entries, Mapping)
        self.phonemes: str | None = None
        self._spellings: dict[str, str] = {}
        for word, spelling in entries.items():
            self._add(word, spelling, "lexicon")
        self._compile()

    @classmethod
    def of(cls, lexicon: "LexiconLike") -> "Lexicon":
        """Return a lexicon, given itself, its entries or its file.

        Raises:
            PromptError: an entry is wrong, or the file can't be read.
            ParameterError: it is something else.
        """
        if isinstance(lexicon, Lexicon):
            return lexicon
        return cls(lexicon) if isinstance(lexicon, Mapping) else cls.read(lexicon)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Lexicon":
        """Read a file of at most 4 MiB. Errors as for `of`; each names its line."""
        path = expanded_path("lexicon", path)
        try:
            lines = read_small_file(path, _MAX_FILE_BYTES).decode("utf-8-sig").splitlines()
        except OSError as error:
            raise PromptError(
                f"lexicon must be a text file, got {path}, which can't be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError as error:
            raise PromptError(f"lexicon must be UTF-8, got {path}, which is not at byte {error.start}") from None
        lexicon = cls({})
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            word, equals, spelling = line.partition("=")
            if not equals:
                raise PromptError(f"{path}, line {number}: an entry must be WORD = SPELLING, got {short_repr(line)}")
            lexicon._add(word, spelling, f"{path}, line {number}")
        lexicon._compile()
        return lexicon

    def apply(self, text: str) -> str:
        """Return a text with its words replaced; what replaces a word is not searched again."""
        return text if self._pattern is None else self._pattern.sub(self._replacement, text)

    def _add(self, word: str, spelling: str, location: str) -> None:
        for name, value in (("word", word), ("spelling", spelling)):
            check_unicode(value, f"{location}: {name}")
            plain = VERBATIM.sub(" ", value) if name == "spelling" else value
            if not value.strip() or _BREAKS.search(plain):
                raise PromptError(f"{location}: {name} must be text without brackets, got {short_repr(value)}")
        word = " ".join(word.split())
        if word in self._spellings:
            raise PromptError(f"{location}: word must be given once, got {short_repr(word)} again")
        if self.phonemes is None and VERBATIM.search(spelling):
            self.phonemes = spelling.strip()
        self._spellings[word] = spelling.strip()

    def _compile(self) -> None:
        words = sorted(self._spellings, key=len, reverse=True)
        patterns = (
            f"{'' if _UNSPACED.match(word[0]) else _BEGINS}{_SPACE.sub('[ ]+', regex.escape(word))}"
            f"{'' if _UNSPACED.match(word[-1]) else _ENDS}"
            for word in words
        )
        self._pattern = regex.compile("|".join(patterns), regex.IGNORECASE) if words else None

    def _replacement(self, match: regex.Match) -> str:
        word = " ".join(match[0].split())
        lower = word.lower()
        return self._spellings.get(word) or self._spellings.get(lower) or match[0]


_BEGINS, _ENDS = r"(?<![\p{L}\p{M}\p{N}])", r"(?![\p{L}\p{M}\p{N}])"
_SPACE = regex.compile(r"(?:\\ | )+")

LexiconLike = Lexicon | Mapping[str, str] | str | os.PathLike
"""The arguments that `Lexicon.of` takes."""
