"""A part of SSML, the W3C's markup of speech, as plain text with pauses and speeds.

`<speak>` holds everything; `<p>` is a paragraph, `<s>` a sentence, `<break time="1s"/>` or `<break/>` a pause, and
`<sub alias="engine x">nginx</sub>` says its alias. `<prosody rate="120%">` is another speed. Other elements and
attributes are refused by name.

`rate` may be one of `_RATES`, a percentage (SSML 1.1) or a number (SSML 1.0): each multiplies the default speed, so
that the inner one of nested elements counts. A percentage with a sign is a relative change (SSML 1.0), which clouds
still take: it multiplies the speed around the element.
"""

import re
from xml.etree import ElementTree

from higgs_native.audio.tempo import MAX_SPEED, MIN_SPEED
from higgs_native.errors import PromptError, one_line, short_repr
from higgs_native.manuscript.timing import pause_seconds, speed_tag
from higgs_native.prompt.markup import SPEED


_ATTRIBUTES = {
    "speak": {"version", "lang", "schemaLocation"},
    "break": {"time"},
    "sub": {"alias"},
    "prosody": {"rate"},
    "p": set(),
    "s": set(),
}
# The standard leaves their values open. Each step is the square root of two.
_RATES = {"x-slow": 0.5, "slow": 0.707107, "medium": 1.0, "default": 1.0, "fast": 1.414214, "x-fast": 2.0}
_NUMBER = re.compile(r"([+-]?)([0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})(%?)")
_WHITE_SPACE = re.compile(r"\s+")
_BEFORE_STOP = re.compile(r" (?=\.( |$))")
_ENDS = (".", "!", "?", ":", ";", "…", "。", "！", "？", "]")


def is_ssml(text: str) -> bool:
    """Return whether a text is SSML: whether it begins with the element `<speak>`."""
    begin = text.lstrip("\ufeff \t\r\n")
    if begin.startswith("<?xml"):
        begin = begin.partition("?>")[2].lstrip()
    return begin.startswith(("<speak>", "<speak ", "<!DOCTYPE speak"))


def read_ssml(text: str) -> str:
    """Return SSML as a text that `HiggsAudio.speak` takes.

    Raises:
        PromptError: it is no XML, has a document type, or an element or attribute outside the subset.
    """
    if "<!DOCTYPE" in text:  # entities could make it endless
        raise PromptError("SSML must have no document type, got <!DOCTYPE")
    reader = _Reader()
    parser = ElementTree.XMLParser(target=reader)
    try:
        parser.feed(text.strip("\ufeff \t\r\n"))
        parser.close()
    except ElementTree.ParseError as error:
        raise PromptError(f"SSML must be well-formed XML, got an error: {one_line(str(error))}") from None
    return reader.text()


class _Reader:
    """Writes the text while the parser reads, whatever the depth of the elements."""

    def __init__(self) -> None:
        self._text = ""
        self._parts: list[str] = []
        self._in_sub = 0
        self._speeds = [1.0]  # of the elements around

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = _local(name)
        if name not in _ATTRIBUTES:
            raise PromptError(
                f"SSML must hold {', '.join(_ATTRIBUTES)} only, got the element <{short_repr(name)[1:-1]}>"
            )
        given = {_local(key): value for key, value in attributes.items()}
        for key in given:
            if key not in _ATTRIBUTES[name]:
                allowed = ", ".join(sorted(_ATTRIBUTES[name])) or "no attributes"
                raise PromptError(f"<{name}> must have {allowed} only, got the attribute {short_repr(key)}")
        self._flush()
        if name in ("p", "speak"):
            self._parts.append("\n\n")
        elif name == "sub":
            if "alias" not in given:
                raise PromptError("<sub> must have the attribute alias, got none")
            self._parts.append(" ".join(given["alias"].split()))
            self._in_sub += 1
        elif name == "prosody":
            if "rate" not in given:
                raise PromptError("<prosody> must have the attribute rate, got none")
            self._speeds.append(_speed(given["rate"], self._speeds[-1]))
            self._tag_speed(self._speeds[-2])
        elif name == "break":
            tag = f"[pause:{given['time'].strip().removeprefix('+')}]" if "time" in given else "[pause]"
            pause_seconds(tag)
            self._parts.append(tag)

    def end(self, name: str) -> None:
        name = _local(name)
        if name == "sub":
            self._text = ""
            self._in_sub -= 1
        self._flush()
        if name == "prosody":
            self._tag_speed(self._speeds.pop())
        elif name == "s":
            tags = []  # that end within the sentence; its stop is before them
            while self._parts and SPEED.fullmatch(self._parts[-1]):
                tags.append(self._parts.pop())
            said = "".join(self._parts[-1:]).rstrip()
            self._parts.append(". " if said and not said.endswith(_ENDS) else " ")
            self._parts += reversed(tags)
        elif name == "p":
            self._parts.append("\n\n")

    def data(self, text: str) -> None:
        self._text += text

    def text(self) -> str:
        paragraphs = (
            _BEFORE_STOP.sub("", " ".join(paragraph.split())) for paragraph in "".join(self._parts).split("\n\n")
        )
        return "\n\n".join(filter(None, paragraphs))

    def _tag_speed(self, before: float) -> None:
        """Write the speed unless it is that of the text before."""
        if self._speeds[-1] != before:
            self._parts.append(speed_tag(self._speeds[-1]))

    def _flush(self) -> None:
        if self._text and not self._in_sub:
            self._parts.append(_WHITE_SPACE.sub(" ", self._text))
        self._text = ""


def _speed(rate: str, around: float) -> float:
    """Return the speed of a rate within text of the speed `around`. Raises PromptError if it is none."""
    rate = rate.strip()
    match = _NUMBER.fullmatch(rate)
    if rate in _RATES:
        speed = _RATES[rate]
    elif match is None or (match[1] and not match[3]):
        expected = f"a percentage such as 80% or +20%, a number, or one of {', '.join(_RATES)}"
        raise PromptError(f"rate must be {expected}, got {short_repr(rate)}")
    else:
        factor = float(match[2]) / (100 if match[3] else 1)
        speed = {"": factor, "+": around * (1 + factor), "-": around * (1 - factor)}[match[1]]
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise PromptError(f"rate must be a speed between {MIN_SPEED:g} and {MAX_SPEED:g}, got {short_repr(rate)}")
    return round(speed, 6)


def _local(name: str) -> str:
    """Return a name without its namespace."""
    return name.rpartition("}")[2]
