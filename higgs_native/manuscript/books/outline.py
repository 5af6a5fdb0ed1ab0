"""The outline of a book: its headings and blocks of text, in order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """The heading of a part of a book. Its words are spoken only if they are a block, too.

    Attributes:
        level: 1 is the outermost.
        title: in one line.
    """

    level: int
    title: str


Item = Heading | str
"""A heading, or a block of plain text, such as a paragraph."""
