"""EPUB files: their text and table of contents.

A file comes from anywhere, so nothing of it is unpacked to disk, and each part that is read is bounded whatever the
archive claims of its size. XML that defines entities is refused, and no file outside the archive is opened.
"""

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from higgs_native.errors import PromptError, one_line, short_repr
from higgs_native.manuscript.books.outline import Heading, Item


MAX_PART_BYTES = 32 << 20
"""Maximum size of a part of the archive, unpacked."""
MAX_BYTES = 128 << 20
"""Maximum size of all parts that are read, unpacked."""
_MAX_PARTS = 10_000
_MAX_DEPTH = 50

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_XHTML, _NCX = "application/xhtml+xml", "application/x-dtbncx+xml"
_BLOCKS = re.compile(
    r"address|article|aside|blockquote|body|caption|center|d[dlt]|div|fig(ure|caption)|footer|form|h[1-6r]|header|[ou]l"
    r"|li|main|nav|p|pre|section|table|t(body|[dhr]|head|foot)"
)
_UNSPOKEN = re.compile(r"head|script|style|svg|math|template|r[tp]|audio|video|object")
_VOID = re.compile(r"area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr")
_HEADING = re.compile(r"h[1-6]")


def read_epub(path: Path) -> tuple[str, list[Item]]:
    """Return the title, which may be empty, and the headings and blocks of an EPUB file.

    The headings are those of the table of contents; of a book without one, those of the text.

    Raises:
        PromptError: the file can't be read, is no EPUB or a damaged one, is encrypted, or is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Epub(path, archive).read()
    except OSError as error:
        raise PromptError(f"book must be a readable file, got {path}: {error.strerror or error}") from None
    # NotImplementedError: of an unknown compression. RuntimeError: of a password.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, PromptError):
            raise
        raise PromptError(f"book must be an intact EPUB file, got {path}: {one_line(str(error))}") from None


class _Epub:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._parts = {entry.filename: entry for entry in archive.infolist()}
        self._num_bytes = 0
        if len(self._parts) > _MAX_PARTS:
            raise PromptError(f"book must have at most {_MAX_PARTS} parts, got {len(self._parts)} in {path}")

    def read(self) -> tuple[str, list[Item]]:
        root = self._xml(_CONTAINER).find(".//{*}rootfile")
        package_name = "" if root is None else root.get("full-path", "")
        package, folder = self._xml(package_name), posixpath.dirname(package_name)
        encrypted = self._encrypted()
        manifest = {item.get("id"): item for item in package.findall("{*}manifest/{*}item")}
        documents = []
        for reference in package.findall("{*}spine/{*}itemref"):
            item = manifest.get(reference.get("idref"))
            if item is not None and reference.get("linear") != "no" and item.get("media-type") == _XHTML:
                documents.append(_resolved(folder, item.get("href", "")))
        title = " ".join((package.findtext("{*}metadata/{*}title") or "").split())
        contents: dict[str, Heading] = {}
        for level, name, target in self._contents(package, manifest, folder):
            contents.setdefault(target, Heading(level, name))
        items: list[Item] = []
        for name in dict.fromkeys(documents):
            if name in encrypted:
                raise PromptError(f"book must not be encrypted (DRM), got {self._path}, which is")
            reader = _TextReader(name, contents)
            reader.feed(self._text(name))
            reader.close()
            items += reader.items
        return title, items

    def _contents(self, package: ElementTree.Element, manifest: dict, folder: str) -> Iterator[tuple[int, str, str]]:
        """Yield level, title and target of each entry of the table of contents: EPUB 3's, or else EPUB 2's."""
        for item in manifest.values():
            if "nav" in item.get("properties", "").split():
                name = _resolved(folder, item.get("href", ""))
                reader = _NavReader()
                reader.feed(self._text(name))
                yield from ((level, title, _resolved_link(name, link)) for level, title, link in reader.entries)
                return
        for item in manifest.values():
            if item.get("media-type") == _NCX:
                name = _resolved(folder, item.get("href", ""))
                points = [(1, point) for point in self._xml(name).findall("{*}navMap/{*}navPoint")]
                while points:
                    level, point = points.pop(0)
                    title = " ".join((point.findtext("{*}navLabel/{*}text") or "").split())
                    content = point.find("{*}content")
                    if content is not None:
                        yield level, title, _resolved_link(name, content.get("src", ""))
                    if level < _MAX_DEPTH:
                        points[:0] = [(level + 1, inner) for inner in point.findall("{*}navPoint")]
                return

    def _encrypted(self) -> set[str]:
        """Return the names of encrypted parts. Fonts may be among them, which nobody speaks."""
        if _ENCRYPTION not in self._parts:
            return set()
        references = self._xml(_ENCRYPTION).iter("{http://www.w3.org/2001/04/xmlenc#}CipherReference")
        return {_resolved("", reference.get("URI", "")) for reference in references}

    def _bytes(self, name: str) -> bytes:
        if name not in self._parts:
            raise PromptError(f"book must be an EPUB file, got {self._path} without the part {short_repr(name)}")
        with self._archive.open(self._parts[name]) as part:
            contents = part.read(MAX_PART_BYTES + 1)
        self._num_bytes += len(contents)
        if len(contents) > MAX_PART_BYTES or self._num_bytes > MAX_BYTES:
            raise PromptError(
                f"book must have at most {MAX_PART_BYTES >> 20} MiB per part and {MAX_BYTES >> 20} MiB of text, got "
                f"more in {self._path}"
            )
        return contents

    def _text(self, name: str) -> str:
        contents = self._bytes(name)
        encoding = "utf-16" if contents[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return contents.decode(encoding, "replace")

    def _xml(self, name: str) -> ElementTree.Element:
        text = self._text(name)
        if "<!ENTITY" in text:  # entities within entities grow without end
            raise PromptError(f"book must have no XML entities of its own, got some in {short_repr(name)}")
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise PromptError(f"book must be an intact EPUB file, got {short_repr(name)}: {error}") from None
        return root


class _TextReader(HTMLParser):
    """Collects the blocks of a document, and the headings where the table of contents leads to."""

    def __init__(self, name: str, contents: dict[str, Heading]) -> None:
        super().__init__(convert_charrefs=True)
        self.items: list[Item] = []
        self._name = name
        self._contents = contents
        self._words: list[str] = []
        self._skipped: list[str] = []  # open elements within one that is not spoken
        self._shown: tuple[int, int] | None = None  # an open heading of the text: its level and its index in `items`
        self._mark("")

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if self._skipped:
            if tag == self._skipped[-1]:
                self._skipped.append(tag)
            return
        if anchor := given.get("id"):
            self._mark(anchor)
        kinds = f"{given.get('epub:type') or ''} {given.get('role') or ''}"
        is_note = "noteref" in kinds or "pagebreak" in kinds
        if (_UNSPOKEN.fullmatch(tag) or is_note or "hidden" in given) and not _VOID.fullmatch(tag):
            self._skipped.append(tag)
            return
        if _BLOCKS.fullmatch(tag):
            self._flush()
        if tag == "br":
            self._words.append(" ")
        if not self._contents and _HEADING.fullmatch(tag):
            self._shown = int(tag[1]), len(self.items)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if self._skipped or not _VOID.fullmatch(tag):
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            if tag == self._skipped[-1]:
                self._skipped.pop()
            return
        if _BLOCKS.fullmatch(tag):
            self._flush()
        if self._shown is not None and _HEADING.fullmatch(tag):
            level, index = self._shown
            title = " ".join(item for item in self.items[index:] if isinstance(item, str))
            if title:
                self.items.insert(index, Heading(level, title))
            self._shown = None

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._words.append(data)

    def close(self) -> None:
        super().close()
        self._flush()

    def _mark(self, anchor: str) -> None:
        heading = self._contents.get(f"{self._name}#{anchor}" if anchor else self._name)
        if heading is not None:
            self._flush()
            self.items.append(heading)

    def _flush(self) -> None:
        block = " ".join("".join(self._words).split())
        if block:
            self.items.append(block)
        self._words = []


class _NavReader(HTMLParser):
    """Collects the entries of a navigation document's table of contents."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.entries: list[tuple[int, str, str]] = []
        self._navs: list[bool] = []  # whether each open <nav> is the table of contents
        self._level = 0
        self._link: str | None = None
        self._title: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "nav":
            self._navs.append((given.get("epub:type") or "toc") == "toc")
        elif self._navs and self._navs[-1]:
            self._level += tag == "ol"
            if tag == "a":
                self._link, self._title = given.get("href"), []

    def handle_endtag(self, tag: str) -> None:
        if tag == "nav" and self._navs:
            self._navs.pop()
        elif self._navs and self._navs[-1]:
            self._level -= tag == "ol"
            if tag == "a" and self._link is not None:
                self.entries.append((max(1, self._level), " ".join("".join(self._title).split()), self._link))
                self._link = None

    def handle_data(self, data: str) -> None:
        self._title.append(data)


def _resolved(folder: str, href: str) -> str:
    """Return the name of a part, given a link in a folder of the archive."""
    return posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))


def _resolved_link(document: str, href: str) -> str:
    """Return the part that a document links to, with `#` and the anchor if there is one."""
    target, _, anchor = href.partition("#")
    name = _resolved(posixpath.dirname(document), target) if target else document
    return f"{name}#{unquote(anchor)}" if anchor else name
