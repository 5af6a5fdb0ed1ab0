"""A part of SSML, the W3C's markup of speech, as plain text with pauses.

`<speak>` holds everything; `<p>` is a paragraph, `<s>` a sentence, `<break time="1s"/>` or `<break/>` a pause, and
`<sub alias="engine x">nginx</sub>` says its alias. Other elements and attributes are refused by name.
"""

import re
from xml.etree import ElementTree

from higgs_native.errors import PromptError, one_line, short_repr
from higgs_native.manuscript.pauses import pause_seconds


_ATTRIBUTES = {
    "speak": {"version", "lang", "schemaLocation"},
    "break": {"time"},
    "sub": {"alias"},
    "p": set(),
    "s": set(),
}
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
        if name == "s":
            said = "".join(self._parts[-1:]).rstrip()
            self._parts.append(". " if said and not said.endswith(_ENDS) else " ")
        elif name == "p":
            self._parts.append("\n\n")

    def data(self, text: str) -> None:
        self._text += text

    def text(self) -> str:
        paragraphs = (
            _BEFORE_STOP.sub("", " ".join(paragraph.split())) for paragraph in "".join(self._parts).split("\n\n")
        )
        return "\n\n".join(filter(None, paragraphs))

    def _flush(self) -> None:
        if self._text and not self._in_sub:
            self._parts.append(_WHITE_SPACE.sub(" ", self._text))
        self._text = ""


def _local(name: str) -> str:
    """Return a name without its namespace."""
    return name.rpartition("}")[2]
