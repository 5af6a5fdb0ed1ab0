"""Long texts, cut into chunks that a model speaks well.

A text is always cut at paragraphs and speaker turns. Pieces that are still too long are cut between sentences, then
after clauses, then between words. In text without spaces, words are those of jieba (Chinese, if it is installed) or
begin where a Japanese word may begin. A word that is itself too long is cut between characters.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

import regex

from higgs_native.convention import Convention
from higgs_native.errors import ParameterError
from higgs_native.long_form.settings import Boundary
from higgs_native.manuscript.timing import pause_seconds, tagged_speed, without_idle_speeds
from higgs_native.prompt.chat import clean_text, normalized_text
from higgs_native.prompt.markup import CONTROL_TAG, PAUSE, SPEAKER_TAG, SPEED, TIMING
from higgs_native.prompt.normalize import SPEAKABLE, drop_invisible, is_speakable, nothing_to_say
from higgs_native.prompt.pace import spoken_milliseconds
from higgs_native.prompt.sentences import (
    CLOSING,
    EAST_ASIAN,
    ENDS_EAST_ASIAN,
    ENDS_LINE,
    OPENING,
    STARTS_EAST_ASIAN,
    before_quotes,
    cut_at,
    opening_quotes,
    split_sentences,
)
from higgs_native.utils.checks import check_callable, check_flag, check_number


MIN_CHUNK_SECONDS, MAX_CHUNK_SECONDS = 2.0, 30.0
"""Above 30 seconds the model's speech becomes unstable; below 2 seconds chunks would be single words."""


_CLAUSE_END = regex.compile(
    # Runs of a mark match only from their start and as a whole, which keeps the time linear in their length.
    # A comma or similar mark, but not within a number or a word.
    rf"(?<![,;:،؛，；：、､])[,;:،؛，；：、､]++{CLOSING}*(?=\s|{EAST_ASIAN}|{OPENING})"
    # Marks that ended no sentence, as in: "Stop!" he said.
    rf"|(?:(?<![!?؟])[!?؟]++|(?<!\.)\.\.++){CLOSING}*(?=\s|{EAST_ASIAN})"
    r"|(?<=\s)[-–—]+(?=\s)"
)
_TAGS = regex.compile(f"({SPEAKER_TAG.pattern}|{TIMING.pattern})", regex.IGNORECASE)
_HAN, _KANA = regex.compile(r"\p{Han}"), regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_JIEBA_BLOCK = 1000  # characters; the time grows with the square of their number if they make no words
# Grapheme clusters; small kana and length marks belong to the kana before them. Flags are pairs of letters. Within a
# run of flags they are found without \X, which counts the letters before each one.
_FLAG_LETTER = "[\U0001f1e6-\U0001f1ff]"
_CHARACTER = regex.compile(
    rf"(?:{_FLAG_LETTER}{{2}}(?={_FLAG_LETTER})|\X)[ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮー々]*"
)


def _unspaced_word(han: str) -> regex.Pattern:
    """Return a pattern of words in text without spaces, each with its punctuation; `han` matches those of Han."""
    return regex.compile(
        r"(?V1)(?:<\|[^|<>]*\|>|<SE\w*>\[\w+\]</SE\w*>|\p{Nd}+(?:[.,:]\p{Nd}+)*|"
        + han
        + r"|[\p{Katakana}ー]+\p{Hiragana}*|\p{Hiragana}+"
        r"|[[\p{L}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}]]+(?:['\-]\p{Latin}+)*|.)[^\p{L}\p{N}\s<]*\s*",
        regex.DOTALL,
    )


# A Japanese word: kanji or katakana, with the hiragana of its ending and particles.
_JAPANESE_WORD = _unspaced_word(r"[\p{Han}々〆ヶ]+\p{Hiragana}*")
_OTHER_WORD = _unspaced_word(r"\p{Han}")


@dataclass(frozen=True)
class TextChunk:
    """A piece of a text that is spoken by one generation.

    Attributes:
        text: normalized (see `higgs_native.prompt.normalize`), without the speaker's tag.
        tag: of the speaker, such as `[SPEAKER0]`; empty if the text names none.
        boundary: what begins with this chunk: a `chapter` of a book, a `turn` of another speaker, or else a
            `paragraph`, a `sentence` or a `word`.
        pause: the silence before it that the text asks for, in seconds, in place of its boundary's.
        speed: over that of the model.
    """

    text: str
    tag: str
    boundary: Boundary
    pause: float | None = None
    speed: float = 1.0

    @property
    def prompt(self) -> str:
        """The tag and the text, as a prompt holds them."""
        return f"{self.tag} {self.text}".lstrip()


def check_chunk_seconds(max_seconds: float) -> None:
    """Raise ParameterError if `max_seconds` is not between `MIN_CHUNK_SECONDS` and `MAX_CHUNK_SECONDS`."""
    check_number("chunk_seconds", max_seconds)
    if not MIN_CHUNK_SECONDS <= max_seconds <= MAX_CHUNK_SECONDS:
        raise ParameterError(
            f"chunk_seconds must be between {MIN_CHUNK_SECONDS:g} and {MAX_CHUNK_SECONDS:g}, got {max_seconds}"
        )


def chunk_text(
    text: str,
    max_seconds: float,
    join_sentences: bool = True,
    convention: Convention = Convention.BOSON,
    can_read: Callable[[str], bool] | None = None,
) -> list[TextChunk]:
    """Cut a text into chunks of at most `max_seconds` each by `spoken_seconds`.

    Blank lines separate paragraphs. Single line breaks do so too, unless at least half of them are within sentences:
    then the text is wrapped, and they count as spaces. `[SPEAKER0]`, `[SPEAKER1]`, ... begin turns anywhere in a line;
    a turn continues over paragraphs until the next tag.

    Nothing is lost, doubled or moved: the chunks of a turn in a paragraph, concatenated, are its normalized text
    except for the white space between them. Pieces without a letter or digit (`* * *`) are left out.

    `[pause:1s]` or `[pause:250ms]` ends a chunk. Pauses that follow each other add up; one at the end is left out.
    A change of the speed (`[speed:1.2]`) ends a chunk, too.

    Args:
        text: plain text; each turn in each paragraph is normalized separately.
        max_seconds: `MIN_CHUNK_SECONDS` to `MAX_CHUNK_SECONDS`.
        join_sentences: let a chunk hold as many sentences of a paragraph as fit, instead of one.
        convention: decides how the text is normalized.
        can_read: whether the voice can read a word of a piece; others are left out. None: it reads all.

    Raises:
        PromptError: the text holds neither letters nor digits, is no valid Unicode, or has a wrong pause or
            speed.
        ParameterError: `max_seconds` is out of range, the convention is none, or PyAV is missing for another speed.
    """
    check_chunk_seconds(max_seconds)
    check_flag("join_sentences", join_sentences)
    check_callable("can_read", can_read, optional=True)
    convention = Convention.parse(convention)
    text = without_idle_speeds(drop_invisible(text, "text"))
    limit = int(1000 * max_seconds)
    says_something = False
    chunks: list[TextChunk] = []
    tag = last_tag = ""
    pause: float | None = None
    speed = 1.0
    said = ""  # the part before
    control = ""  # control tags before something to say
    for paragraph in _paragraphs(text):
        first: Boundary = "paragraph"
        for part in _TAGS.split(clean_text(paragraph, convention)):
            if SPEAKER_TAG.fullmatch(part):
                tag = part
                continue
            if PAUSE.fullmatch(part):
                pause = (pause or 0.0) + pause_seconds(part)
                continue
            if SPEED.fullmatch(part):
                speed = tagged_speed(part)
                if first == "sentence" and not ENDS_LINE.search(said):
                    first = "word"  # no pause within a sentence
                continue
            if not is_speakable(part):
                control += "".join(CONTROL_TAG.findall(part))
                continue
            boundary: Boundary | None = first if tag == last_tag else "turn"
            words = _with_end(control + part.strip(), convention)
            control = ""
            sentences = [words] if join_sentences else split_sentences(words)
            for piece, inner in itertools.chain.from_iterable(_split(sentence, limit) for sentence in sentences):
                if not is_speakable(piece):
                    continue
                says_something = True
                if can_read is None or can_read(piece):
                    chunks.append(TextChunk(piece.strip(), tag, boundary or inner, pause, speed))
                    boundary = pause = None
            if boundary is None:
                first, last_tag, said = "sentence", tag, part.rstrip()
    if not says_something:
        raise nothing_to_say(text)
    return chunks


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs, each in one line; `chunk_text` defines them."""
    lines = [line.strip() for line in text.splitlines()]
    breaks = [
        ENDS_LINE.search(line) is None
        for line, following in itertools.pairwise(SPEED.sub("", line).strip() for line in lines)
        if line and following and not SPEAKER_TAG.match(following) and not SPEAKER_TAG.fullmatch(line)
    ]
    is_wrapped = 2 * sum(breaks) >= max(1, len(breaks))
    paragraph = ""
    for line in lines:
        if line and is_wrapped:
            east_asian = ENDS_EAST_ASIAN.search(paragraph[-1:]) and STARTS_EAST_ASIAN.match(line)
            paragraph += line if east_asian or not paragraph else " " + line
            continue
        yield paragraph
        paragraph = line
    yield paragraph


def _with_end(text: str, convention: Convention) -> str:
    """Add the full stop of `normalize_text` to clean text, unless it ends in a mark of another script, such as `؟`."""
    return text if ENDS_LINE.search(text) else normalized_text(text, convention)


def _split(text: str, limit: int, level: int = 0) -> list[tuple[str, Boundary]]:
    """Cut a text into pieces of at most `limit` milliseconds, each with its boundary; `level` indexes `_LEVELS`."""
    if spoken_milliseconds(text) <= limit:
        return [(text, "sentence")]
    units: list[tuple[str, Boundary]] = []
    parts = _LEVELS[level](text)
    # Sentences stay whole. Within one, a short part joins a neighbor that is cut anyway.
    for unit in _without_small_neighbors(parts, limit) if level else parts:
        begins: Boundary = "sentence" if level == 0 else "word"
        for piece, _ in _split(unit, limit, level + 1):
            units.append((piece, begins))
            begins = "word"
    return list(_packed(units, limit))


def _without_small_neighbors(parts: list[str], limit: int) -> list[str]:
    """Join each part above the limit with neighbors below a quarter of the limit."""
    joined: list[str] = []
    previous = 0  # milliseconds of the part before
    for part in parts:
        size = spoken_milliseconds(part)
        if joined and ((size > limit and previous < limit // 4) or (previous > limit and size < limit // 4)):
            joined[-1] += part
        else:
            joined.append(part)
        previous = size
    return joined


def _packed(units: list[tuple[str, Boundary]], limit: int) -> Iterator[tuple[str, Boundary]]:
    """Join units to as few pieces as the limit allows, about equally long: a short last one would be spoken badly."""
    sizes = [spoken_milliseconds(text) for text, _ in units]
    remaining = sum(sizes)
    begin = size = 0
    for index, added in enumerate(sizes):
        share = remaining / max(1, math.ceil(remaining / limit))
        if size and (size + added > limit or size + added - share > share - size):
            yield "".join(text for text, _ in units[begin:index]), units[begin][1]
            remaining -= size
            begin, size = index, 0
        size += added
    yield "".join(text for text, _ in units[begin:]), units[begin][1]


def _clauses(text: str) -> list[str]:
    """Cut normalized text after its clauses."""
    opening = opening_quotes(text)
    return cut_at(text, [before_quotes(opening, match.end()) for match in _CLAUSE_END.finditer(text)])


def _words(text: str) -> list[str]:
    """Cut text after white space."""
    return regex.findall(r"\S+\s*", text)


def _unspaced_words(text: str) -> list[str]:
    """Cut text without white space before words."""
    if CONTROL_TAG.search(text):
        parts = re.split(f"({CONTROL_TAG.pattern})", text)
        return [
            word
            for part in parts
            if part
            for word in ([part] if CONTROL_TAG.fullmatch(part) else _unspaced_words(part))
        ]
    if _KANA.search(text):
        return _JAPANESE_WORD.findall(text)
    if _HAN.search(text):
        jieba = _jieba()
        if jieba is not None:
            blocks = (text[begin : begin + _JIEBA_BLOCK] for begin in range(0, len(text), _JIEBA_BLOCK))
            return _with_punctuation(itertools.chain.from_iterable(map(jieba.cut, blocks)))
    return _OTHER_WORD.findall(text)


def _characters(text: str) -> list[str]:
    """Cut text between characters as readers see them."""
    return _CHARACTER.findall(text)


# The functions that cut, from sentences to code points. The last one is for letters with unlimited marks.
_LEVELS: tuple[Callable[[str], list[str]], ...] = (
    split_sentences,
    _clauses,
    _words,
    _unspaced_words,
    _characters,
    list,
)


def _with_punctuation(words: Iterable[str]) -> list[str]:
    """Join punctuation to the word before it."""
    joined: list[str] = []
    for word in words:
        if joined and not SPEAKABLE.search(word):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


@functools.cache
def _jieba() -> ModuleType | None:
    """Return the word segmenter for Chinese, or None if it is not installed."""
    try:
        import jieba
    except ImportError:
        return None
    jieba.setLogLevel("WARNING")
    return jieba
