"""A text as its user has it, prepared for speaking: markup goes, and what is no word becomes words."""

import regex

from higgs_native.english.normalize import normalize as normalize_english
from higgs_native.manuscript.lexicon import Lexicon, LexiconLike
from higgs_native.manuscript.markup import strip_markup as strip
from higgs_native.manuscript.ssml import is_ssml, read_ssml
from higgs_native.prompt.markup import CONTROL_TAG, PAUSE, SPEAKER_TAG
from higgs_native.prompt.normalize import SOUND_EFFECT, check_unicode
from higgs_native.utils.checks import check_flag


# These stay as they are written.
_TAGS = regex.compile(
    rf"(\s*(?:{'|'.join(tag.pattern for tag in (SPEAKER_TAG, SOUND_EFFECT, PAUSE, CONTROL_TAG))})\s*)",
    regex.IGNORECASE,
)


def prepare_text(
    text: str,
    normalize: bool = False,
    strip_markup: bool = False,
    lexicon: LexiconLike | None = None,
) -> str:
    """Return a text as it is spoken, which may hold pauses and speakers' tags. Plain text stays as it is.

    Args:
        text: as for `HiggsAudio.speak`. SSML, which begins with `<speak>`, becomes plain text.
        normalize: write out numbers, dates, money, units, abbreviations and addresses of an English text, by
            `higgs_native.english.normalize`. Tags, such as `[SPEAKER0]` and `[laugh]`, and line breaks stay.
        strip_markup: leave out the markup of Markdown, and emoji; see `higgs_native.manuscript.markup`.
        lexicon: replaces words; a file, its entries, or a `Lexicon`. It comes before the normalization.

    Raises:
        PromptError: the text is no str or not valid Unicode, its SSML is wrong, or the lexicon.
        ParameterError: an option is none, or `strip_markup` lacks a package.
    """
    check_unicode(text, "text")
    check_flag("normalize", normalize)
    check_flag("strip_markup", strip_markup)
    if is_ssml(text):
        text = read_ssml(text)
    elif strip_markup:
        text = strip(text)
    if lexicon is not None:
        words = Lexicon.of(lexicon)
        text = "".join(part if _TAGS.fullmatch(part) else words.apply(part) for part in _TAGS.split(text))
    if normalize:
        text = "\n".join(map(_normalized, text.splitlines()))
    return text


def _normalized(line: str) -> str:
    return "".join(
        part if _TAGS.fullmatch(part) or not part.strip() else normalize_english(part) for part in _TAGS.split(line)
    )
