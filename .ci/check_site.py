"""Whether every link of the built documentation leads somewhere.

python .ci/check_site.py SITE

SITE is the folder that mkdocs has written. Links inside it must name a file of it and, after #, an
element of that page. Links to the repository, of which the pages themselves tell the address, must
name a file of this checkout. Other links are not followed; they must be https.
"""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

ROOT = Path(__file__).resolve().parents[1]
HERE = "https://site.invalid/"
"""Stands for the address that the site is going to have."""


class Page(HTMLParser):
    """The links of a page, the names that links may lead to, and the repository's address."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors = {"", "__top"}
        self.repository: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.links |= {attributes[name] for name in ("href", "src") if name in attributes}
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        if tag == "a" and "md-source" in attributes.get("class", "").split():
            self.repository = attributes["href"].rstrip("/")


def fault(link: str, site: Path, pages: dict[Path, Page], repository: str | None) -> str | None:
    """What is wrong with an absolute link; None if nothing is."""
    parts = urlsplit(link)
    if link.startswith(HERE):
        path = site / unquote(parts.path).lstrip("/")
        if path.is_dir():
            path /= "index.html"
        if not path.is_file():
            return "no such file in the site"
        is_named = path not in pages or unquote(parts.fragment) in pages[path].anchors
        return None if is_named else "no such place on that page"
    if repository and link.startswith(f"{repository}/"):
        inside = unquote(parts.path.removeprefix(f"{urlsplit(repository).path}/"))
        kind, _, path = inside.partition("/main/")
        is_there = kind in ("blob", "edit", "tree", "raw") and (ROOT / path).exists()
        return None if is_there else "no such file in the repository"
    return None if parts.scheme in ("https", "data", "mailto") else "must be https"


def faults(site: Path) -> list[str]:
    """One line for each link that leads nowhere."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site}: no pages"]
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for link in sorted(page.links):
            if wrong := fault(urljoin(HERE + name, link), site, pages, page.repository):
                found.append(f"{name}: {link}: {wrong}")
    index = site / "search" / "search_index.json"
    for entry in json.loads(index.read_text(encoding="utf-8"))["docs"] if index.exists() else ():
        if wrong := fault(HERE + entry["location"], site, pages, None):
            found.append(f"search: {entry['location']}: {wrong}")
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]).resolve())
    sys.exit("\n".join(wrong) if wrong else 0)
