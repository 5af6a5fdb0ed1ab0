"""Splits texts into sentences, in any script."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable

import regex


EAST_ASIAN = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\u3000-\u303f\uff00-\uffef]"
# «French» and »German« use the same marks in both roles; a French closing mark may follow a space.
OPENING = r"[\"'“‘„«»‹›(\[{¿¡「『（【《〈]"
CLOSING = r"(?:[\"'“”’«»‹›)\]}」』）】》〉]|\s[»›](?=\s|$))"
_ENDS = ".!?。！？｡．؟۔।॥։።၊။"
_SENTENCE_END = regex.compile(rf"([{_ENDS}]+){CLOSING}*")
ENDS_LINE = regex.compile(rf"[{_ENDS}…]{CLOSING}*$")
STARTS_EAST_ASIAN, ENDS_EAST_ASIAN = regex.compile(EAST_ASIAN), regex.compile(EAST_ASIAN + "$")
# A sentence continues after a mark if a small letter follows, or after a Japanese quotation a particle.
_GOES_ON = regex.compile(rf"\s+{OPENING}*\p{{Ll}}|(?<=[\"'」』])(?:と|って)")
_LAST_WORD = regex.compile(r"[\p{L}\p{M}\p{N}](?:[\p{L}\p{M}\p{N}.]|(?<=\p{L})['-](?=\p{L}))*$")
# Initials, "z.B." and "U.S.", and numbers such as "3. Oktober".
_DOTTED = regex.compile(
    r"[\p{Latin}\p{Cyrillic}\p{Greek}\p{Arabic}\p{Hebrew}]|(?:\p{L}{1,3}\.)+\p{L}{1,3}|\p{Nd}{1,2}"
)
# A sentence may continue after these. If it does not, two sentences count as one.
_ABBREVIATION_WORDS = (
    # English
    "mr mrs ms messrs dr prof rev hon st jr sr vs etc nos vol vols fig figs pp eds approx dept inc ltd corp gen col "
    "lt sgt capt cmdr adm gov sen pres mt ave blvd jan feb apr jun jul aug sept oct nov dec "
    # German
    "bzw ca usw usf vgl evtl ggf inkl exkl nr str tel bd bde hrsg jh abb aufl hr frl dipl ing sog geb gest mio mrd "
    # Spanish, French
    "sra srta sres dra ud uds vd vds pág págs núm avda gral excmo aprox mme mlle"
)
_ABBREVIATIONS = frozenset(_ABBREVIATION_WORDS.split())
_SPACE = regex.compile(r"\s*")


def split_sentences(text: str) -> list[str]:
    """Cut normalized text after its sentences; where the end of one is unsure, don't cut."""
    ends, opening = [], opening_quotes(text)
    for match in _SENTENCE_END.finditer(text):
        marks, before = match[1], text[max(0, match.start() - 24) : match.start()]
        if _GOES_ON.match(text, match.end()):
            continue
        if match.end() == len(text) or text[match.end()].isspace():
            if marks == "." and _is_abbreviation(before):
                continue
        # East Asian sentences follow each other without a space. Their "..." is a pause more often than an end.
        elif marks.isascii() and (
            marks.startswith("..")
            or not (ENDS_EAST_ASIAN.search(before) or STARTS_EAST_ASIAN.match(text, match.end()))
            or _is_abbreviation(before)
        ):
            continue
        ends.append(before_quotes(opening, match.end()))
    return cut_at(text, ends)


def _is_abbreviation(before: str) -> bool:
    """Whether a full stop after `before` may belong to its last word."""
    word = _LAST_WORD.search(before)
    return word is not None and (word[0].casefold() in _ABBREVIATIONS or _DOTTED.fullmatch(word[0]) is not None)


def opening_quotes(text: str) -> set[int]:
    """Return the indices of quotation marks that open a quotation.

    Normalized opening and closing marks are equal. Every other one opens, except before a space.
    """
    opening: set[int] = set()
    counts: Counter[str] = Counter()
    for match in re.finditer("[\"']", text):
        counts[match[0]] += 1
        before_space = match.end() == len(text) or text[match.end()].isspace()
        if counts[match[0]] % 2 and not before_space:
            opening.add(match.start())
    return opening


def before_quotes(opening: set[int], end: int) -> int:
    """Return `end`, moved back over the marks in `opening`."""
    while end - 1 in opening:
        end -= 1
    return end


def cut_at(text: str, ends: Iterable[int]) -> list[str]:
    """Cut at `ends`, each moved over the white space that follows."""
    ends = [space.end() for end in ends if (space := _SPACE.match(text, end))]
    return [text[begin:end] for begin, end in itertools.pairwise([0, *ends, len(text)]) if end > begin]
