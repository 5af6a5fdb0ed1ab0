"""Text as the model was trained to read it: punctuation, sound effect tags and white space made uniform."""

from higgs_native.errors import PromptError


# Full-width and typographic punctuation, and what is written for it.
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
    """Return `text` as it should stand in a prompt.

    In this order: full-width punctuation to ASCII; parentheses to spaces; °F and °C spelled out; sound effect tags
    such as `[laugh]` or `[humming start]` to the model's own; runs of white space within a line to one space, blank
    lines dropped; a full stop after a text that ends in neither punctuation nor a sound effect.

    Raises:
        PromptError: nothing is left to say, or the text is no str, or not valid Unicode.
    """
    if not isinstance(text, str):
        raise PromptError(f"the text is a {type(text).__name__}; expected a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"the text is not valid Unicode at character {error.start}; expected UTF-8 text") from None
    text = text.translate(_PUNCTUATION)
    for written, replacement in (_SPELLED_OUT | _SOUND_EFFECTS).items():
        text = text.replace(written, replacement)
    lines = (" ".join(line.split()) for line in text.split("\n"))
    text = "\n".join(line for line in lines if line)
    if not text:
        raise PromptError("the text is empty; expected something to say")
    return text if text.endswith(_ENDINGS) else text + "."
