"""Markdown and emoji in a text that is spoken: what readers see becomes plain text, the rest is left out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import regex

from higgs_native.errors import ParameterError
from higgs_native.prompt.markup import SPEAKER_TAG, TIMING
from higgs_native.prompt.normalize import SOUND_EFFECT


if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token


# Tags of this package, which Markdown could take for links.
_TAG = regex.compile(rf"(?={SPEAKER_TAG.pattern}|{SOUND_EFFECT.pattern}|{TIMING.pattern})\[")
# A flag, or a picture with its modifiers and those that are joined to it. Signs that are read are none.
_PICTURE = (
    r"(?:[\U0001f1e6-\U0001f1ff]{2}|[[\p{Extended_Pictographic}\p{Emoji_Presentation}]--[©®™‼⁉\U0001f1e6-\U0001f1ff]]"
    r"[\ufe0e\ufe0f\p{Emoji_Modifier}\U000e0020-\U000e007f]*)"
)
_EMOJI = regex.compile(rf"(?V1)[ \t]*(?:{_PICTURE}(?:\u200d{_PICTURE})*[ \t]*)+(?=(\w)?)")
_KEYCAP = regex.compile(r"\ufe0f?\u20e3")


def strip_markup(text: str) -> str:
    """Return a Markdown text without its markup, and without emoji. Blocks are separated by blank lines.

    Links and pictures leave their words, HTML leaves what is between its tags. Blocks of code are left out. Cells of
    a table are separated by commas.

    Raises:
        ParameterError: markdown-it-py is missing.
    """
    tokens = markdown_parser("strip_markup").parse(protected(text))
    return strip_emoji("\n\n".join(plain_blocks(tokens)))


def protected(text: str) -> str:
    """Return a Markdown text in which the tags of this package are no links."""
    return _TAG.sub(r"\\[", text)


def strip_emoji(text: str) -> str:
    """Return a text without emoji; the digit of a keycap stays."""
    return _EMOJI.sub(_replacement, _KEYCAP.sub("", text))


def _replacement(match: regex.Match) -> str:
    begins_line = match.start() == 0 or match.string[match.start() - 1] == "\n"
    return " " if match[1] and not begins_line else ""


def markdown_parser(name: str) -> "MarkdownIt":
    """Return a parser of Markdown with tables.

    Args:
        name: of the argument that needs it.

    Raises:
        ParameterError: markdown-it-py is missing.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        raise ParameterError(
            f"{name} must be left out without markdown-it-py, got True; pip install markdown-it-py reads Markdown"
        ) from None
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def plain_blocks(tokens: "Sequence[Token]") -> list[str]:
    """Return the text of each block that has one: headings, paragraphs, items of lists, rows of tables."""
    blocks: list[str] = []
    number = ""
    row: list[str] | None = None
    for token in tokens:
        match token.type:
            case "list_item_open":
                number = f"{token.info}. " if token.info else ""
            case "tr_open":
                row = []
            case "tr_close":
                blocks.append(", ".join(filter(None, row or ())))
                row = None
            case "inline":
                text = number + plain_line(token.children or ()).strip()
                (blocks if row is None else row).append(text)
                number = ""
    return [block for block in blocks if block]


def plain_line(tokens: "Sequence[Token]") -> str:
    """Return the words of the tokens in a block."""
    parts = []
    for token in tokens:
        match token.type:
            case "text" | "code_inline":
                parts.append(token.content)
            case "softbreak" | "hardbreak":
                parts.append(" ")
            case "image":
                parts.append(plain_line(token.children or ()))
    return "".join(parts)
