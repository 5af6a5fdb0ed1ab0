"""Text as in the model's training data: uniform punctuation, sound effect tags and white space."""

import regex

from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.markup import CONTROL_TAG, SPEAKER_TAG


SPEAKABLE = regex.compile(r"[\p{L}\p{N}]")
"""A text without a letter or digit, such as `...` or an emoji, has no words to say."""


def is_speakable(text: str) -> bool:
    """Return whether a text holds something to say beside tags."""
    return SPEAKABLE.search(CONTROL_TAG.sub("", SPEAKER_TAG.sub("", text))) is not None


# Zero-width joiners and non-joiners change words of these scripts (Persian, Sinhala, ...), and join emoji.
_JOINING = (
    r"[\p{Arabic}\p{Syriac}\p{Mandaic}\p{Nko}\p{Adlam}\p{Mongolian}\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Gujarati}"
    r"\p{Oriya}\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
)
_EMOJI = r"[\p{Extended_Pictographic}\p{Emoji_Modifier}]"
_INVISIBLE = regex.compile(
    r"(?V1)(?P<kept>"
    rf"(?<={_JOINING}\p{{M}}*)[\u200c\u200d](?={_JOINING})"
    r"|(?<=\p{Canonical_Combining_Class=Virama})[\u200c\u200d]"
    rf"|(?<={_EMOJI}\ufe0f?)\u200d(?={_EMOJI})|(?<={_EMOJI})[\ufe0e\ufe0f]|\ufe0f(?=\u20e3)"
    r"|\U0001f3f4[\U000e0020-\U000e007e]{3,6}\U000e007f"  # flags of England, Scotland, Wales
    r")|[[\p{Default_Ignorable_Code_Point}\p{Cc}\ufff9-\ufffb]--[\s\x1c-\x1f]]"  # Python takes the last four for space
)


# Full-width and typographic punctuation.
_PUNCTUATION = str.maketrans(
    {
        "，": ", ",
        "。": ".",
        "：": ":",
        "；": ";",
        "？": "?",
        "！": "!",
        "（": "(",
        "）": ")",
        "【": "[",
        "】": "]",
        "《": "<",
        "》": ">",
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "、": ",",
        "—": "-",
        "…": "...",
        "·": ".",
        "「": '"',
        "」": '"',
        "『": '"',
        "』": '"',
    }
)
_SPELLED_OUT = {
    "(": " ",
    ")": " ",
    "°F": " degrees Fahrenheit",
    "°C": " degrees Celsius",
}
_SOUND_EFFECTS = {
    "[laugh]": "<SE>[Laughter]</SE>",
    "[applause]": "<SE>[Applause]</SE>",
    "[cheering]": "<SE>[Cheering]</SE>",
    "[cough]": "<SE>[Cough]</SE>",
    "[music]": "<SE>[Music]</SE>",
    "[humming start]": "<SE_s>[Humming]</SE_s>",
    "[humming end]": "<SE_e>[Humming]</SE_e>",
    "[music start]": "<SE_s>[Music]</SE_s>",
    "[music end]": "<SE_e>[Music]</SE_e>",
    "[sing start]": "<SE_s>[Singing]</SE_s>",
    "[sing end]": "<SE_e>[Singing]</SE_e>",
}
SOUND_EFFECT = regex.compile(
    "|".join(map(regex.escape, sorted([*_SOUND_EFFECTS, *_SOUND_EFFECTS.values()], key=len, reverse=True)))
)
"""A tag of a sound effect, as users or as the model's training data write it."""
_ENDINGS = (".", "!", "?", ",", ";", '"', "'", "</SE>", "</SE_e>")


def normalize_text(text: str) -> str:
    """Return `text` as it is written in a prompt.

    Rules, in this order:

    1. Characters without a glyph or a sound are dropped (see `drop_invisible`).
    2. Full-width and typographic punctuation becomes ASCII.
    3. Parentheses become spaces; °F and °C are spelled out.
    4. Sound effect tags such as `[laugh]` or `[humming start]` become the model's own.
    5. White space within a line becomes one space; blank lines are dropped.
    6. A text that ends in neither punctuation nor a sound effect gets a full stop.

    Raises:
        PromptError: no letter or digit is left to say, or the text is no str or not valid Unicode.
    """
    normalized = clean_text(text)
    if not is_speakable(normalized):
        raise nothing_to_say(text)
    return normalized if normalized.endswith(_ENDINGS) else normalized + "."


def clean_text(text: str) -> str:
    """Apply the rules of `normalize_text` without the last one, also to a text without anything to say.

    Raises:
        PromptError: the text is no str or not valid Unicode.
    """
    cleaned = drop_invisible(text, "text").translate(_PUNCTUATION)
    for written, replacement in (_SPELLED_OUT | _SOUND_EFFECTS).items():
        cleaned = cleaned.replace(written, replacement)
    lines = (" ".join(line.split()) for line in cleaned.split("\n"))
    return "\n".join(line for line in lines if line)


def drop_invisible(text: str, name: str) -> str:
    """Return a text without the characters that readers neither see nor say, but that change the speech.

    These are byte order marks, soft hyphens, marks of direction, zero-width characters and control characters. Joiners
    stay where a script or an emoji needs them.

    Raises:
        PromptError: the text, called `name`, is no str or not valid Unicode.
    """
    check_unicode(text, name)
    return _INVISIBLE.sub(lambda match: match["kept"] or "", text)


def nothing_to_say(text: str) -> PromptError:
    """Return the error of a text without a letter or digit besides speakers' tags."""
    return PromptError(f"text must hold something to say, got {short_repr(text)}")


def check_unicode(text: str, name: str) -> None:
    """Raise PromptError if a text, called `name`, is no str or not valid Unicode."""
    if not isinstance(text, str):
        raise PromptError(f"{name} must be a string, got {short_repr(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{name} must be valid Unicode, got {text[error.start]!r} at {error.start}") from None
