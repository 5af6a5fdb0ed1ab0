"""Pauses and changes of the speed in a text.

`[pause:1s]` or `[pause:250ms]` is silence of that length, `[pause]` that before a paragraph. `[speed:1.2]` is the
speed of what follows, up to the next such tag; `[speed]` is the normal one. Anything else in brackets that begins with
the word `pause` or `speed` is an error.
"""

import re
from dataclasses import dataclass

import regex

from higgs_native.audio.tempo import MAX_SPEED, MIN_SPEED, check_speed
from higgs_native.errors import PromptError, short_repr
from higgs_native.prompt.markup import CONTROL_TAG, PAUSE, SPEAKER_TAG, SPEED, TIMING
from higgs_native.prompt.normalize import is_speakable, nothing_to_say


DEFAULT_PAUSE_SECONDS = 0.7
MAX_PAUSE_SECONDS = 60.0
_DEFAULT = "[pause]"
_LENGTH = regex.compile(r"\[pause: ?(\d{1,6}(?:\.\d{1,6})?) ?(s|ms)\]", regex.IGNORECASE)
_NORMAL = "[speed]"
_FACTOR = regex.compile(r"\[speed: ?(\d{1,6}(?:\.\d{1,6})?)\]", regex.IGNORECASE)


@dataclass(frozen=True)
class Passage:
    """A part of a text that is spoken without a pause, at one speed.

    Attributes:
        text: begins with the tag of its speaker, if the text names one.
        pause: the silence before it, in seconds.
        speed: over that of the model.
    """

    text: str
    pause: float
    speed: float = 1.0


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


def tagged_speed(tag: str) -> float:
    """Return the speed that a tag names.

    Raises:
        PromptError: it names none, or one out of range.
        ParameterError: PyAV, which changes the speed, is missing.
    """
    if tag.lower() == _NORMAL:
        return 1.0
    match = _FACTOR.fullmatch(tag)
    if match is None:
        raise PromptError(f"a speed must be written as [speed:1.2] or [speed], got {short_repr(tag)}")
    speed = float(match[1])
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise PromptError(f"a speed must be between {MIN_SPEED:g} and {MAX_SPEED:g}, got {short_repr(tag)}")
    check_speed(speed)
    return speed


def speed_tag(speed: float) -> str:
    """Return the tag of a speed, rounded to six digits after the point."""
    return _NORMAL if speed == 1 else f"[speed:{speed:.6f}".rstrip("0").rstrip(".") + "]"


def without_idle_speeds(text: str) -> str:
    """Return a text with a space in place of each speed that is the one in effect, so that it is not cut there.

    Raises:
        PromptError, ParameterError: as for `tagged_speed`.
    """
    speed = 1.0

    def replacement(match: re.Match[str]) -> str:
        nonlocal speed
        before, speed = speed, tagged_speed(match[0])
        return " " if speed == before else match[0]

    return SPEED.sub(replacement, text)


def split_passages(text: str) -> list[Passage]:
    """Cut a text at its pauses and where its speed changes.

    Pauses that follow each other add up; one at the end is left out. Control tags alone go to the next part that says
    something.

    Raises:
        PromptError: a pause or a speed is written wrongly, or the text holds nothing to say.
        ParameterError: as for `tagged_speed`.
    """
    passages: list[Passage] = []
    speaker, pause, speed, control = "", 0.0, 1.0, ""
    for part in regex.split(f"({TIMING.pattern})", without_idle_speeds(text), flags=regex.IGNORECASE):
        if PAUSE.fullmatch(part):
            pause += pause_seconds(part)
            continue
        if SPEED.fullmatch(part):
            speed = tagged_speed(part)
            continue
        tags = SPEAKER_TAG.findall(part)
        if is_speakable(part):
            goes_on = speaker if not SPEAKER_TAG.match(part.lstrip()) else ""
            part = control + part.lstrip() if control else part
            passages.append(Passage(f"{goes_on} {part.strip()}".lstrip() if passages or pause else part, pause, speed))
            pause, control = 0.0, ""
        else:
            control += "".join(CONTROL_TAG.findall(part))
        speaker = tags[-1] if tags else speaker
    if not passages:
        raise nothing_to_say(text)
    return passages


def without_timing(text: str) -> str:
    """Return a text with white space in place of its pauses and speeds."""
    return TIMING.sub(" ", text)
