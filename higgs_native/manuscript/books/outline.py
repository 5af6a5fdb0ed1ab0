"""What a book's file is read into: headings and blocks of text in their order."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """Where a part of a book begins. Its words are spoken only if they are a block, too.

    Attributes:
        level: 1 is the outermost.
        title: in one line.
    """

    level: int
    title: str


Item = Heading | str
"""A heading, or a block of plain text, such as a paragraph."""
