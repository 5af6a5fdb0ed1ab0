"""Text as in the model's training data: uniform punctuation, sound effect tags and white space."""

from higgs_native.errors import PromptError, short_repr


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
_ENDINGS = (".", "!", "?", ",", ";", '"', "'", "</SE>", "</SE_e>")


def normalize_text(text: str) -> str:
    """Return `text` as it is written in a prompt.

    Rules, in this order:

    1. Full-width and typographic punctuation becomes ASCII.
    2. Parentheses become spaces; °F and °C are spelled out.
    3. Sound effect tags such as `[laugh]` or `[humming start]` become the model's own.
    4. White space within a line becomes one space; blank lines are dropped.
    5. A text that ends in neither punctuation nor a sound effect gets a full stop.

    Raises:
        PromptError: nothing is left to say, or the text is no str or not valid Unicode.
    """
    check_unicode(text, "text")
    normalized = text.translate(_PUNCTUATION)
    for written, replacement in (_SPELLED_OUT | _SOUND_EFFECTS).items():
        normalized = normalized.replace(written, replacement)
    lines = (" ".join(line.split()) for line in normalized.split("\n"))
    normalized = "\n".join(line for line in lines if line)
    if not normalized:
        raise PromptError(f"text must hold something to say, got {text!r:.50}")
    return normalized if normalized.endswith(_ENDINGS) else normalized + "."


def check_unicode(text: str, name: str) -> None:
    """Raise PromptError if a text, called `name`, is no str or not valid Unicode."""
    if not isinstance(text, str):
        raise PromptError(f"{name} must be a string, got {short_repr(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{name} must be valid Unicode, got {text[error.start]!r} at {error.start}") from None
