"""Give the package's page on an index the addresses of its repository: run in a checkout before it is built.

    python .github/add_links.py https://github.com/OWNER/NAME

Links of README.md to files become absolute, and pyproject.toml gets the project's addresses. The workflow does it,
which knows the repository; the sources name none.
"""

import re
import sys
from pathlib import Path


def main() -> None:
    (repository,) = sys.argv[1:]
    readme, project = Path("README.md"), Path("pyproject.toml")
    text = readme.read_text(encoding="utf-8")
    linked = re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", rf"]({repository}/blob/HEAD/\1)", text)
    urls = {
        "Repository": repository,
        "Documentation": f"{repository}/blob/HEAD/docs/usage.md",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    table = "[project.urls]\n" + "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    settings = project.read_text(encoding="utf-8")
    marker = "\n[project.optional-dependencies]\n"
    if settings.count(marker) != 1:
        raise SystemExit(f"pyproject.toml must have one table{marker.rstrip()}, got {settings.count(marker)}")
    project.write_text(settings.replace(marker, f"\n{table}{marker}"), encoding="utf-8")
    readme.write_text(linked, encoding="utf-8")


if __name__ == "__main__":
    main()
