"""A text as its user has it, prepared for speaking: markup goes, and what is no word becomes words."""

import regex

from higgs_native.english.normalize import normalize as normalize_english
from higgs_native.english.pronunciation import VERBATIM
from higgs_native.errors import PromptError
from higgs_native.manuscript.lexicon import Lexicon, LexiconLike
from higgs_native.manuscript.markup import strip_markup as strip
from higgs_native.manuscript.ssml import is_ssml, read_ssml
from higgs_native.prompt.markup import CONTROL_TAG, SPEAKER_TAG, TIMING
from higgs_native.prompt.normalize import SOUND_EFFECT, check_unicode
from higgs_native.utils.checks import check_flag


# These stay as they are written. White space before them begins where it does, so that it is searched once.
_SPACE = r"(?:(?<!\s)\s+)?"
_PATTERNS = [tag.pattern for tag in (SPEAKER_TAG, SOUND_EFFECT, TIMING, CONTROL_TAG)]
_TAGS = regex.compile(rf"({_SPACE}(?:{'|'.join(_PATTERNS)})\s*)", regex.IGNORECASE)
_TAGS_AND_PHONEMES = regex.compile(
    rf"({_SPACE}(?:{'|'.join([*_PATTERNS, VERBATIM.pattern.replace('(', '(?:')])})\s*)", regex.IGNORECASE
)


def prepare_text(
    text: str,
    normalize: bool = False,
    strip_markup: bool = False,
    lexicon: LexiconLike | None = None,
    phonemes: bool = False,
) -> str:
    """Return a text as it is spoken, which may hold pauses, speeds and speakers' tags. Plain text stays as it is.

    Args:
        text: as for `HiggsAudio.speak`. SSML, which begins with `<speak>`, becomes plain text.
        normalize: write out numbers, dates, money, units, abbreviations and addresses of an English text, by
            `higgs_native.english.normalize`. Tags, such as `[SPEAKER0]` and `[laugh]`, and line breaks stay.
        strip_markup: leave out the markup of Markdown, and emoji; see `higgs_native.manuscript.markup`.
        lexicon: replaces words; a file, its entries, or a `Lexicon`. It comes before the normalization.
        phonemes: whether the voice reads phonemes, so that `[[...]]` stays as it is written.

    Raises:
        PromptError: the text is no str or not valid Unicode, its SSML is wrong, or the lexicon, which may hold
            phonemes only with `phonemes`.
        ParameterError: an option is none, or `strip_markup` lacks a package.
    """
    check_unicode(text, "text")
    check_flag("normalize", normalize)
    check_flag("strip_markup", strip_markup)
    check_flag("phonemes", phonemes)
    tags = _TAGS_AND_PHONEMES if phonemes else _TAGS
    if is_ssml(text):
        text = read_ssml(text)
    elif strip_markup:
        text = strip(text)
    if lexicon is not None:
        words = Lexicon.of(lexicon)
        if words.phonemes is not None and not phonemes:
            raise PromptError(f"lexicon must hold spellings for a model that reads words, got {words.phonemes}")
        text = "".join(part if tags.fullmatch(part) else words.apply(part) for part in tags.split(text))
    if normalize:
        text = "\n".join(_normalized(line, tags) for line in text.splitlines())
    return text


def _normalized(line: str, tags: regex.Pattern[str]) -> str:
    return "".join(
        part if tags.fullmatch(part) or not part.strip() else normalize_english(part) for part in tags.split(line)
    )
