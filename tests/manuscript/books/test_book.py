"""Books become chapters; damaged and hostile files are refused in one line."""

import random
import zipfile
from contextlib import suppress

import pytest

from higgs_native.errors import ParameterError, PromptError
from higgs_native.manuscript.books import epub
from higgs_native.manuscript.books.book import Book, Chapter, file_names, is_book, read_book
from tests.manuscript.books.epubs import page, write_epub


DOCUMENTS = {
    "one.xhtml": page("<h1>One</h1><p>The sun<br/>rises.</p><p>Warm<sup><a epub:type='noteref'>1</a></sup> days.</p>"),
    "two.xhtml": page(
        "<h1 id='two'>Two</h1><ul><li>Red</li><li>Green &amp; blue</li></ul><h1 id='three'>Three</h1>End."
    ),
}
CHAPTERS = (
    Chapter("First", "One\n\nThe sun rises.\n\nWarm days."),
    Chapter("Second", "Two\n\nRed\n\nGreen & blue"),
    Chapter("Third", "Three\n\nEnd."),
)


def test_a_table_of_contents_of_version_3(tmp_path):
    nav = (
        "<li><a href='one.xhtml'>First</a></li><li><a href='two.xhtml#two'>Second</a></li>"
        "<li><a href='two.xhtml#three'><b>Third</b></a></li>"
    )
    book = read_book(write_epub(tmp_path / "book.epub", DOCUMENTS, nav))
    assert (book.title, book.chapters) == ("The Book", CHAPTERS)


def test_a_table_of_contents_of_version_2_in_levels(tmp_path):
    points = "".join(
        f"<navPoint><navLabel><text>{title}</text></navLabel><content src='{target}'/></navPoint>"
        for title, target in (("First", "one.xhtml"), ("Second", "two.xhtml#two"), ("Third", "two.xhtml#three"))
    )
    ncx = "<navPoint><navLabel><text>All</text></navLabel><content src='cover.xhtml'/>" + points + "</navPoint>"
    book = read_book(write_epub(tmp_path / "book.epub", DOCUMENTS, ncx=ncx))
    assert book.chapters == CHAPTERS


def test_without_a_table_headings_are_chapters(tmp_path):
    book = read_book(write_epub(tmp_path / "book.epub", DOCUMENTS))
    assert [chapter.title for chapter in book.chapters] == ["One", "Two", "Three"]
    assert [chapter.text for chapter in book.chapters] == [chapter.text for chapter in CHAPTERS]


def test_what_comes_before_the_first_chapter_has_the_title_of_the_book(tmp_path):
    documents = {"cover.xhtml": page("<p>By Anna.</p><img src='a.png' alt='no'/>"), **DOCUMENTS}
    nav = "<li><a href='one.xhtml'>First</a></li><li><a href='two.xhtml'>Second</a></li>"
    book = read_book(write_epub(tmp_path / "book.epub", documents, nav))
    assert [chapter.title for chapter in book.chapters] == ["The Book", "First", "Second"]
    assert book.chapters[0].text == "By Anna."


@pytest.mark.parametrize(
    ("text", "title", "chapters"),
    [
        ("# A\n\nOne *two*.\n\n# B\n\n- three", "A", [("A", "A\n\nOne two."), ("B", "B\n\nthree")]),
        ("# Book\n\n## A\n\none\n\n## B\n\ntwo", "Book", [("Book", "Book"), ("A", "A\n\none"), ("B", "B\n\ntwo")]),
        ("Only text.", "notes", [("notes", "Only text.")]),
        (
            "Before.\n\n# A\n\n# B\n\n[SPEAKER0]: Hi.",
            "A",
            [("A", "Before."), ("A", "A"), ("B", "B\n\n[SPEAKER0]: Hi.")],
        ),
        ("# A\n\n> # quoted\n\n### deep\n\nx\n\n# B", "A", [("A", "A\n\nquoted\n\ndeep\n\nx"), ("B", "B")]),
    ],
)
def test_markdown(text, title, chapters, tmp_path):
    pytest.importorskip("markdown_it")
    path = tmp_path / "notes.md"
    path.write_text(text)
    book = read_book(path)
    assert book.title == title
    assert [(chapter.title, chapter.text) for chapter in book.chapters] == chapters


def test_file_names_are_safe_and_sort():
    assert file_names(["A/B: \\c?", "../x", "", "é" * 100]) == ["01 A B c", "02 x", "03", "04 " + "é" * 60]
    assert file_names(["a"] * 100)[0] == "001 a"


def test_only_existing_books_are_books(tmp_path):
    (tmp_path / "a.EPUB").touch()
    (tmp_path / "b.epub").mkdir()
    assert is_book(tmp_path / "a.EPUB")
    assert not is_book(tmp_path / "b.epub")
    assert not is_book("Hello.md")


ENTITIES = "<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]>"


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"OEBPS/content.opf": f"{ENTITIES}<package>&b;</package>"}, "book must have no XML entities of its own"),
        ({"OEBPS/content.opf": f"{ENTITIES}<package/>".encode("utf-16")}, "book must have no XML entities of its own"),
        ({"OEBPS/content.opf": "<package>"}, "book must be an intact EPUB file, got 'OEBPS/content.opf': no element"),
        ({"META-INF/container.xml": "<container/>"}, "got .*book.epub without the part ''"),
        (
            {"META-INF/container.xml": "<c><rootfile full-path='../../../../etc/passwd'/></c>"},
            "without the part '../../../../etc/passwd'",
        ),
        (
            {
                "META-INF/encryption.xml": "<e xmlns:x='http://www.w3.org/2001/04/xmlenc#'>"
                "<x:CipherReference URI='OEBPS/one.xhtml'/></e>"
            },
            r"book must not be encrypted \(DRM\)",
        ),
        ({"OEBPS/one.xhtml": "", "OEBPS/two.xhtml": page("<p>...</p>")}, "book must hold something to say"),
    ],
)
def test_damaged_and_hostile_archives(others, message, tmp_path):
    path = write_epub(tmp_path / "book.epub", DOCUMENTS, others=others)
    with pytest.raises(PromptError, match=message):
        read_book(path)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(epub, "MAX_PART_BYTES", 1 << 16)
    path = write_epub(tmp_path / "book.epub", {"one.xhtml": page("a" * (1 << 20))})
    assert path.stat().st_size < 1 << 13
    with pytest.raises(PromptError, match="book must have at most 0 MiB per part and 128 MiB of text, got more"):
        read_book(path)
    monkeypatch.setattr(epub, "MAX_PART_BYTES", 1 << 25)
    monkeypatch.setattr(epub, "MAX_BYTES", 1 << 16)
    with pytest.raises(PromptError, match="book must have at most 32 MiB per part and 0 MiB of text, got more"):
        read_book(path)


def test_links_that_leave_the_archive_open_nothing(tmp_path):
    (tmp_path / "secret.xhtml").write_text(page("<p>Secret.</p>"))
    path = write_epub(tmp_path / "book.epub", {"one.xhtml": page("<p>A</p>")})
    with zipfile.ZipFile(path) as archive:
        package = archive.read("OEBPS/content.opf").decode()
    outside = package.replace("one.xhtml", "../../secret.xhtml")
    write_epub(path, {"one.xhtml": page("<p>A</p>")}, others={"OEBPS/content.opf": outside})
    with pytest.raises(PromptError, match=r"without the part '\.\./secret\.xhtml'"):
        read_book(path)


def test_any_damage_is_a_prompt_error_or_none(tmp_path):
    whole = write_epub(tmp_path / "whole.epub", DOCUMENTS, "<li><a href='one.xhtml'>First</a></li>").read_bytes()
    path = tmp_path / "book.epub"
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged[: generator.choice([None, generator.randrange(len(damaged))])])
        with suppress(PromptError):
            assert read_book(path).chapters


@pytest.mark.parametrize(
    ("name", "message"), [("a.epub", "readable file, got .*: No such"), ("a.pdf", "must be a file")]
)
def test_files_that_are_no_books(name, message, tmp_path):
    with pytest.raises(PromptError, match=message):
        read_book(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Book("x", ("a",)), r"^chapters\[0\] must be of the class Chapter, got str$"),
        (lambda: Book("x", [Chapter("a", "b")]), "^chapters must be of the class tuple, got list$"),
        (lambda: Book(1, ()), "^title must be a string, got 1$"),
        (lambda: Chapter(None, "b"), "^title must be a string, got None$"),
        (lambda: Chapter("a", b"b"), "^text must be a string, got b'b'$"),
    ],
)
def test_a_book_of_wrong_types_is_refused(make, message):
    with pytest.raises(ParameterError, match=message):
        make()
