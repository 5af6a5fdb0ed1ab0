"""Small EPUB files."""

import zipfile
from pathlib import Path


CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>"""
NAV = """<html xmlns:epub="http://www.idpf.org/2007/ops"><body><nav epub:type="toc"><h1>Contents</h1><ol>{}</ol></nav>
<nav epub:type="landmarks"><ol><li><a href="one.xhtml">Start</a></li></ol></nav></body></html>"""


def page(body: str) -> str:
    head = "<head><title>No words</title><style>p {}</style></head>"
    return f"<?xml version='1.0'?><html>{head}<body>{body}</body></html>"


def write_epub(
    path: Path,
    documents: dict[str, str],
    nav: str | None = None,
    ncx: str | None = None,
    title: str = "The Book",
    others: dict[str, str | bytes] | None = None,
) -> Path:
    """Write an EPUB with documents in the order of its spine, and maybe a table of contents of version 3 or 2."""
    items = [
        f'<item id="d{index}" href="{name}" media-type="application/xhtml+xml"/>'
        for index, name in enumerate(documents)
    ]
    parts: dict[str, str | bytes] = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER}
    parts |= {f"OEBPS/{name}": text for name, text in documents.items()}
    if nav is not None:
        items.append('<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>')
        parts["OEBPS/nav.xhtml"] = NAV.format(nav)
    if ncx is not None:
        items.append('<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>')
        parts["OEBPS/toc.ncx"] = (
            '<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://x.y/ncx.dtd">'
            f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{ncx}</navMap></ncx>'
        )
    spine = "".join(f'<itemref idref="d{index}"/>' for index in range(len(documents)))
    parts["OEBPS/content.opf"] = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<dc:title>{title}</dc:title></metadata><manifest>{''.join(items)}</manifest><spine>{spine}</spine></package>"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in (parts | (others or {})).items():
            archive.writestr(name, contents)
    return path
