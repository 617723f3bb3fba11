"""What the site needs beyond MkDocs: pages from files outside docs/, links that leave docs/, and nothing fetched from elsewhere.

A problem is a warning, which `mkdocs build --strict` makes an error.
"""

from __future__ import annotations

import logging
import posixpath
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_log = logging.getLogger("mkdocs.hooks.deit_jax")
_ROOT = Path(__file__).parents[2]
_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # file: page
_FILES = {page: file for file, page in _PAGES.items()}
_BRANCH = "main"


class Links(Treeprocessor):
    """Links of the files as they lie in the repository, made into links of the site.

    A page's own keeps to MkDocs, which checks it. Any other file or folder of the repository becomes a link to where `repo_url`
    shows it, or without one the text alone, as code.
    """

    page: str = ""  # the source of the page at hand, relative to docs/
    repo_url: str | None = None

    def run(self, root: Element) -> None:
        for element in root.iter():
            attribute = {"a": "href", "img": "src"}.get(element.tag)
            link = urlsplit(element.get(attribute, "")) if attribute else None
            if link is None or link.scheme or link.netloc or not link.path:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(self.file()), link.path))
            path = _ROOT / target
            if target in _PAGES:
                self._lead_to(element, attribute, _PAGES[target], link.fragment)
            elif target.startswith("docs/"):
                self._lead_to(element, attribute, target.removeprefix("docs/"), link.fragment)
            elif target.startswith("..") or not path.exists():
                _log.warning("%s links to %s, which is not in the repository", self.file(), link.path)
            elif element.tag == "img":
                _log.warning("%s shows %s, which has to lie under docs/ for that", self.file(), link.path)
            elif self.repo_url:
                kind = "tree" if path.is_dir() else "blob"
                element.set("href", f"{self.repo_url.rstrip('/')}/{kind}/{_BRANCH}/{target}")
            else:
                element.tag = "span" if element.find("code") is not None else "code"
                element.attrib.clear()

    def file(self) -> str:
        """The file in the repository that the page is made of."""
        return _FILES.get(self.page, f"docs/{self.page}")

    def _lead_to(self, element: Element, attribute: str, page: str, fragment: str) -> None:
        link = posixpath.relpath(page, posixpath.dirname(self.page) or ".")
        element.set(attribute, link + (f"#{fragment}" if fragment else ""))


class _LinksExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        # After inline Markdown (20) has made the links, before MkDocs (0) looks at them.
        md.treeprocessors.register(_links, "repository_links", 10)


_links = Links()


def on_config(config: MkDocsConfig) -> None:
    """Put the treatment of links in."""
    _links.repo_url = config.repo_url
    config.markdown_extensions.append(_LinksExtension())


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are not under docs/."""
    for file, page in _PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / file)))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> None:
    """Note whose links come next."""
    _links.page = page.file.src_uri


class _Fetched(HTMLParser):
    """The addresses that a page makes a browser fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(found.get("href") or "")
        elif tag in ("script", "img", "iframe", "source", "video"):
            self.addresses.append(found.get("src") or "")


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse what a page would fetch from elsewhere, or would not find."""
    site = Path(config.site_dir)
    for file in sorted(site.rglob("*.html")):
        for address in _Fetched(file.read_text()).addresses:
            link = urlsplit(address)
            if link.netloc:
                _log.warning("%s makes a browser fetch %s", file.relative_to(site), address)
            elif (
                link.path
                and not ((site if link.path.startswith("/") else file.parent) / link.path.lstrip("/")).exists()
            ):
                _log.warning("%s shows %s, which is not there", file.relative_to(site), address)
