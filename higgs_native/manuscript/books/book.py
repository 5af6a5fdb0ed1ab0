"""Books: chapters from EPUB and Markdown files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import regex

from higgs_native.errors import PromptError, short_repr
from higgs_native.manuscript.books.epub import read_epub
from higgs_native.manuscript.books.outline import Heading, Item
from higgs_native.manuscript.markup import markdown_parser, plain_blocks, plain_line, protected
from higgs_native.prompt.normalize import is_speakable
from higgs_native.utils.checks import check_instance, check_string, expanded_path
from higgs_native.utils.files import read_small_file


EPUB_SUFFIXES, MARKDOWN_SUFFIXES = (".epub",), (".md", ".markdown")
_MAX_MARKDOWN_BYTES = 64 << 20
_MAX_NAME = 60
_NOT_IN_NAMES = regex.compile(r"[\p{C}/\\:*?\"<>|]+")


@dataclass(frozen=True)
class Chapter:
    """A chapter of a book.

    Attributes:
        title: in one line.
        text: to speak, with the heading if the book shows one.

    Raises:
        ParameterError: one of them is no str.
    """

    title: str
    text: str

    def __post_init__(self) -> None:
        check_string("title", self.title)
        check_string("text", self.text)


@dataclass(frozen=True)
class Book:
    """A book.

    Attributes:
        title: in one line.
        chapters: in order; each has something to say.

    Raises:
        ParameterError: the title is no str, or the chapters are no tuple of `Chapter`.
    """

    title: str
    chapters: tuple[Chapter, ...]

    def __post_init__(self) -> None:
        check_string("title", self.title)
        check_instance("chapters", self.chapters, tuple)
        for index, chapter in enumerate(self.chapters):
            check_instance(f"chapters[{index}]", chapter, Chapter)


def file_names(titles: Sequence[str]) -> list[str]:
    """Return a name per chapter, without an ending, in an order that sorts: a number and the title."""
    digits = max(2, len(str(len(titles))))
    names = (" ".join(_NOT_IN_NAMES.sub(" ", title).split()).strip(". ")[:_MAX_NAME].strip() for title in titles)
    return [f"{number:0{digits}} {name}".strip() for number, name in enumerate(names, start=1)]


def is_book(path: str | os.PathLike) -> bool:
    """Return whether a path names an existing EPUB or Markdown file."""
    path = Path(path)
    return path.suffix.lower() in (*EPUB_SUFFIXES, *MARKDOWN_SUFFIXES) and os.path.isfile(path)


def read_book(path: str | os.PathLike) -> Book:
    """Read an EPUB (.epub) or Markdown (.md, .markdown) file.

    Chapters are those of the EPUB's table of contents, or of the headings: the outermost level that has several. What
    comes before the first chapter is one with the book's title.

    Raises:
        PromptError: the file can't be read, is damaged or encrypted, or holds nothing to say.
        ParameterError: the file is Markdown, and markdown-it-py is missing.
    """
    path = Path(expanded_path("book", path))
    if path.suffix.lower() in EPUB_SUFFIXES:
        title, items = read_epub(path)
    elif path.suffix.lower() in MARKDOWN_SUFFIXES:
        title, items = "", _read_markdown(path)
    else:
        suffixes = ", ".join((*EPUB_SUFFIXES, *MARKDOWN_SUFFIXES))
        raise PromptError(f"book must be a file that ends in {suffixes}, got {short_repr(str(path))}")
    headings = [item for item in items if isinstance(item, Heading)]
    if not title:
        title = headings[0].title if headings and headings[0].level == 1 else path.stem
    chapters = _chapters(items, title)
    if not chapters:
        raise PromptError(f"book must hold something to say, got {path}")
    return Book(title, tuple(chapters))


def _chapters(items: Sequence[Item], title: str) -> list[Chapter]:
    headings = [item.level for item in items if isinstance(item, Heading)]
    level = min((level for level in headings if headings.count(level) > 1), default=0)
    chapters: list[Chapter] = []
    heading, blocks = title, list[str]()

    def finish() -> None:
        text = "\n\n".join(blocks)
        if is_speakable(text):
            chapters.append(Chapter(heading, text))

    for item in items:
        if isinstance(item, Heading) and item.level <= level:
            finish()
            heading, blocks = item.title or title, []
        elif isinstance(item, str):
            blocks.append(item)
    finish()
    return chapters


def _read_markdown(path: Path) -> list[Item]:
    try:
        text = read_small_file(path, _MAX_MARKDOWN_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"book must be a readable file, got {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"book must be UTF-8, got {path}, which is not at byte {error.start}") from None
    items: list[Item] = []
    begin, tokens = 0, markdown_parser("a Markdown book").parse(protected(text))
    for index, token in enumerate(tokens):
        if token.type == "heading_open" and token.level == 0:
            items += plain_blocks(tokens[begin:index])
            items.append(Heading(int(token.tag[1:]), " ".join(plain_line(tokens[index + 1].children or ()).split())))
            begin = index
    return items + plain_blocks(tokens[begin:])
