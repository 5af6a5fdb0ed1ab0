"""Pauses in a text: `[pause:1s]` or `[pause:250ms]` is silence of that length, `[pause]` that before a paragraph."""

from dataclasses import dataclass

import regex

from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.markup import CONTROL_TAG, PAUSE, SPEAKER_TAG
from higgs_native.prompt.normalize import is_speakable, nothing_to_say


DEFAULT_PAUSE_SECONDS = 0.7
MAX_PAUSE_SECONDS = 60.0
_DEFAULT = "[pause]"
_LENGTH = regex.compile(r"\[pause: ?(\d{1,6}(?:\.\d{1,6})?) ?(s|ms)\]", regex.IGNORECASE)


@dataclass(frozen=True)
class Passage:
    """A part of a text that is spoken without a pause.

    Attributes:
        text: begins with the tag of its speaker, if the text names one.
        pause: the silence before it, in seconds.
    """

    text: str
    pause: float


def pause_seconds(tag: str) -> float:
    """Return the length of a pause. Raises PromptError if its tag is none, or the pause is too long."""
    if tag.lower() == _DEFAULT:
        return DEFAULT_PAUSE_SECONDS
    match = _LENGTH.fullmatch(tag)
    if match is None:
        raise PromptError(f"a pause must be written as [pause], [pause:1s] or [pause:250ms], got {short_repr(tag)}")
    seconds = float(match[1]) / (1000 if match[2].lower() == "ms" else 1)
    if seconds > MAX_PAUSE_SECONDS:
        raise PromptError(f"a pause must be at most {MAX_PAUSE_SECONDS:g} s, got {short_repr(tag)}")
    return seconds


def pause_tag(seconds: float) -> str:
    """Return the tag of a pause."""
    return f"[pause:{seconds:.6f}".rstrip("0").rstrip(".") + "s]"


def split_pauses(text: str) -> list[Passage]:
    """Cut a text at its pauses. Pauses that follow each other add up; one at the end is left out.

    Control tags alone go to the next part that says something.

    Raises:
        PromptError: a pause is written wrongly, or the text holds nothing to say.
    """
    passages: list[Passage] = []
    speaker, pause, control = "", 0.0, ""
    for part in regex.split(f"({PAUSE.pattern})", text, flags=regex.IGNORECASE):
        if PAUSE.fullmatch(part):
            pause += pause_seconds(part)
            continue
        tags = SPEAKER_TAG.findall(part)
        if is_speakable(part):
            goes_on = speaker if not SPEAKER_TAG.match(part.lstrip()) else ""
            part = control + part.lstrip() if control else part
            passages.append(Passage(f"{goes_on} {part.strip()}".lstrip() if passages or pause else part, pause))
            pause, control = 0.0, ""
        else:
            control += "".join(CONTROL_TAG.findall(part))
        speaker = tags[-1] if tags else speaker
    if not passages:
        raise nothing_to_say(text)
    return passages


def without_pauses(text: str) -> str:
    """Return a text with white space in place of its pauses."""
    return PAUSE.sub(" ", text)
