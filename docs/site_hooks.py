"""Hooks of mkdocs: pages of the repository outside of docs/ are pages of the site, and links between them lead on.

A link to a source file leads to `repo_url` of mkdocs.yml; without one, only its text stays.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "examples.md": "examples/README.md",
    "train_voice.md": "examples/train_voice/README.md",
}
_CODE_OR_LINK = re.compile(
    r"^```.*?^```$|\[(?P<text>(?:[^][]|\[[^]]*\])*)\]\((?P<link>[^()\s]+)\)|(?P<code>`[^`\n]*`)",
    re.MULTILINE | re.DOTALL,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, source in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return with_links_of_the_site(markdown, Path(page.file.abs_src_path).parent, config.repo_url)


def with_links_of_the_site(markdown: str, folder: Path, repository: str | None) -> str:
    """Return a page as Python-Markdown reads it, with links that lead to pages of the site or to the repository.

    Args:
        markdown: the page.
        folder: that its links are relative to.
        repository: the address of the repository, if it has one.
    """
    pages = {(ROOT / source).resolve(): name for name, source in OUTSIDE.items()}

    def rewritten(match: re.Match) -> str:
        text, link, code = match["text"], match["link"], match["code"]
        if code is not None:
            return code.replace(r"\|", "|")  # in tables GitHub wants the backslash, Python-Markdown shows it
        if link is None or re.match(r"[a-z]+:|#", link):
            return match[0]
        path, hash_mark, anchor = link.partition("#")
        target = (folder / path).resolve()
        if target in pages:
            return f"[{text}]({pages[target]}{hash_mark}{anchor})"
        if target.is_relative_to(ROOT / "docs") and target.suffix != ".py":
            return f"[{text}]({os.path.relpath(target, ROOT / 'docs')}{hash_mark}{anchor})"
        if repository is None:
            return text
        return f"[{text}]({repository.rstrip('/')}/blob/main/{target.relative_to(ROOT)}{hash_mark}{anchor})"

    return _CODE_OR_LINK.sub(rewritten, markdown)
