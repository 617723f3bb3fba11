"""The site's pages, before and after the builder of the site. `make docs` runs both parts.

    python docs/site/pages.py write   # before: a folder of pages, in which every link leads to a page or to the web
    python docs/site/pages.py check   # after: what the HTML links to and loads is there, and nothing comes from elsewhere

Files go in and files come out, so any builder of Markdown can do the part in between. Folders, address of the repository and
navigation are those of mkdocs.yml. Each problem is one line, and the exit status is then 1.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import yaml
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, image, link
from markdown_it.token import Token

_CONFIG = "mkdocs.yml"
_DOCS = "docs"
_NO_PAGES = "docs/site/"  # this script
_FROM_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_BUILD = "build"
_BRANCH = "main"


class Link(NamedTuple):
    """A link or an image of a Markdown text, by positions in the text: `[label](href "title")`, or one by reference."""

    start: int
    label_end: int  # where the label's "]" is
    end: int
    href: str
    title: str
    is_image: bool
    is_text: bool  # the label holds neither code nor an image


class _BrokenLink(ValueError):
    """Says what is wrong with a link."""


def write(root: Path, config: Mapping[str, Any]) -> list[str]:
    """Write the pages of the repository at `root`, as the builder takes them; returns the problems, and writes nothing if any.

    A link to a file of the site leads to its page there. A link to another file or folder of the repository leads to where
    `repo_url` shows it; without a `repo_url` its text stays, as code. Links elsewhere, and all that is code, stay as they are.
    """
    folder = root / config.get("docs_dir", _DOCS)
    if (root / _BUILD).resolve() not in folder.resolve().parents:
        return [f"{_CONFIG}: docs_dir has to be under {_BUILD}/, because what it holds is deleted first"]
    pages = {file: page for file, page in _FROM_THE_ROOT.items() if (root / file).is_file()}
    for path in sorted((root / _DOCS).rglob("*")):
        file = path.relative_to(root).as_posix()
        if path.is_file() and not file.startswith(_NO_PAGES):
            pages[file] = file.removeprefix(f"{_DOCS}/")
    problems = _navigation_problems(config.get("nav", []), {page for page in pages.values() if page.endswith(".md")})
    texts = {}
    for file, page in pages.items():
        if page.endswith(".md"):
            texts[page], found = _site_links(file, pages, root, config.get("repo_url"))
            problems += found
    if problems:
        return problems
    shutil.rmtree(folder, ignore_errors=True)  # a file that was removed leaves no page
    for file, page in pages.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        if page in texts:
            (folder / page).write_text(texts[page], encoding="utf-8")
        else:
            shutil.copyfile(root / file, folder / page)
    return []


def links(text: str) -> list[Link]:
    """The links and images of a Markdown text. What looks like one in a code block or in inline code is none."""
    noted: list[Link] = []
    content = ""

    def noting(rule: Callable[[StateInline, bool], bool]) -> Callable[[StateInline, bool], bool]:
        def parse(state: StateInline, silent: bool) -> bool:
            start, before = state.pos, len(state.tokens)
            if not rule(state, silent):
                return False
            if not silent and state.src == content:  # else it is in the text that stands for an image
                tokens = state.tokens[before:]
                found = next(token for token in tokens if token.type in ("link_open", "image"))
                is_image = found.type == "image"
                label_end = state.md.helpers.parseLinkLabel(state, start + is_image, not is_image)
                href, title = (str(found.attrGet(name) or "") for name in ("src" if is_image else "href", "title"))
                is_text = is_image or not any(token.type in ("code_inline", "image") for token in tokens)
                noted.append(Link(start, label_end, state.pos, href, title, is_image, is_text))
            return True

        return parse

    # Blocks first, then the text of each: a block's token knows its lines, and the parser of its text the positions there.
    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.disable("inline")
    parser.inline.ruler.at("link", noting(link))
    parser.inline.ruler.at("image", noting(image))
    environment: dict[str, Any] = {}  # the definitions of references
    located: list[Link] = []
    placing = _Placing(text)
    in_cell = False
    for token in parser.parse(text, environment):
        if token.type == "inline":
            content = token.content
            noted.clear()
            parser.inline.parse(content, parser, environment, [])
            place = placing.of(token, in_cell)
            located += [
                one._replace(start=place(one.start), label_end=place(one.label_end), end=place(one.end))
                for one in noted
            ]
        in_cell = token.type in ("th_open", "td_open")
    return located


class _Placing:
    """Where the text of a block is in the whole: a block's text is without what indents or encloses its lines."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self._columns = [0] * len(self._lines)  # up to which a line's text is placed: a row of a table has several

    def of(self, token: Token, in_cell: bool) -> Callable[[int], int]:
        """A function from positions in the token's content to positions in the whole text."""
        assert token.map is not None
        starts = []
        for number, line in enumerate(token.content.split("\n"), token.map[0]):
            if in_cell:
                line = line.replace("|", r"\|")  # as in the source, where a bare one ends the cell
            written = line.lstrip()  # a tab may have become spaces
            column = self._lines[number].index(written, self._columns[number])
            starts.append(self._starts[number] + column - (len(line) - len(written)))
            self._columns[number] = column + len(written)

        def place(position: int) -> int:
            before = token.content[:position].split("\n")
            return starts[len(before) - 1] + len(before[-1]) + (before[-1].count("|") if in_cell else 0)

        return place


def _site_links(file: str, pages: Mapping[str, str], root: Path, repo_url: str | None) -> tuple[str, list[str]]:
    """The text of a page with its links as the site needs them, and the problems."""
    text = (root / file).read_text(encoding="utf-8")
    edits: list[tuple[int, int, str]] = []  # of text[start:end]
    problems = []
    for one in links(text):
        try:
            href = _destination(one, file, pages, root, repo_url)
        except _BrokenLink as error:
            line = text.count("\n", 0, one.start) + 1
            problems.append(f"{file}:{line}: {error}")
            continue
        if href is None:
            opening, closing = ("<code>", "</code>") if one.is_text else ("", "")
            edits += [(one.start, one.start + 1, opening), (one.label_end, one.end, closing)]
        elif href != one.href:
            mark = "'" if '"' in one.title else '"'
            title = f" {mark}{one.title}{mark}" if one.title else ""
            edits.append((one.label_end, one.end, f"]({href}{title})"))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text, problems


def _destination(one: Link, file: str, pages: Mapping[str, str], root: Path, repo_url: str | None) -> str | None:
    """Where a link of `file` leads on the site; None if it leads to a file that nothing shows."""
    parts = urlsplit(one.href)
    if parts.scheme or parts.netloc or not parts.path:
        return one.href
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), unquote(parts.path)))
    if target in pages:
        path = posixpath.relpath(pages[target], posixpath.dirname(pages[file]) or ".")
        return parts._replace(path=quote(path)).geturl()
    if target.startswith(("/", "../")) or not (root / target).exists():
        verb = "shows" if one.is_image else "links to"
        raise _BrokenLink(f"{verb} {unquote(parts.path)}, which is not in the repository")
    if one.is_image:
        raise _BrokenLink(f"shows {unquote(parts.path)}, which has to be under {_DOCS}/ for that")
    if not repo_url:
        return None
    kind = "tree" if (root / target).is_dir() else "blob"
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    return f"{repo_url.rstrip('/')}/{kind}/{_BRANCH}/{quote(target)}{fragment}"


def _navigation_problems(navigation: Any, pages: set[str]) -> list[str]:
    def named(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, Mapping) else entry:
                yield from named(part)

    listed = {name for name in named(navigation) if not urlsplit(name).scheme}
    problems = [f"{_CONFIG}: nav names {page}, which is not a page" for page in sorted(listed - pages)]
    return problems + [f"{_CONFIG}: nav does not name {page}" for page in sorted(pages - listed)]


class _Html(HTMLParser):
    """What a page of the site loads, links to, and offers as the end of a link."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors = {"", "top"}  # of every page
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found and (name == "id" or tag == "a")}
        if "href" in found and tag in ("a", "area"):
            self.links.append(found["href"])
        elif "href" in found and tag == "link" and found.get("rel") != "canonical":
            (self.links if found.get("rel") in ("next", "prev") else self.loads).append(found["href"])
        self.loads += [found[name] for name in ("src", "poster") if found.get(name)]
        self.loads += [part.split()[0] for part in found.get("srcset", "").split(",") if part.strip()]
        if tag == "object" and found.get("data"):
            self.loads.append(found["data"])


def check(site: Path, folder: Path) -> list[str]:
    """The problems of the built site: a page of `folder` that was not built, and what a reader's browser would not find or fetch.

    A browser must fetch nothing from elsewhere, find every file that a page loads, and every page and anchor that one links to.
    """
    html = {path: _Html(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not html:
        return [f"{site}: there are no pages"]
    problems = []
    for source in sorted(folder.rglob("*.md")):
        built = source.relative_to(folder).with_suffix("")
        if site / f"{built}.html" not in html and site / built / "index.html" not in html:
            problems.append(f"{built}.md: the site has no page of it")
    for path, page in html.items():
        name = path.relative_to(site)
        for address in page.loads:
            parts = urlsplit(address)
            if parts.netloc:
                problems.append(f"{name}: makes a browser fetch {address}")
            elif not parts.scheme and not _file(site, path, parts.path).is_file():
                problems.append(f"{name}: loads {address}, which is not there")
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = _file(site, path, parts.path)
            if not target.is_file():
                problems.append(f"{name}: links to {address}, which is not there")
            elif target in html and unquote(parts.fragment) not in html[target].anchors:
                problems.append(f"{name}: links to {address}, and there is no such anchor")
    for path in sorted(site.rglob("*.css")):
        for address in re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", path.read_text("utf-8")):
            problems.append(f"{path.relative_to(site)}: makes a browser fetch {address}")
    return list(dict.fromkeys(problems))


def _file(site: Path, page: Path, path: str) -> Path:
    """The file of the site that a page's address means; `site` itself if it is outside."""
    start = site if path.startswith("/") else page.parent
    file = Path(posixpath.normpath(start / unquote(path).lstrip("/"))) if path else page
    if not file.is_relative_to(site):
        return site
    return file / "index.html" if file.is_dir() else file


def main(arguments: list[str], root: Path = Path(__file__).parents[2]) -> int:
    """Run the part that is named, print the problems and return the exit status."""
    if arguments not in (["write"], ["check"]):
        print("usage: python docs/site/pages.py write|check", file=sys.stderr)
        return 2
    config = yaml.safe_load((root / _CONFIG).read_text(encoding="utf-8"))
    site, folder = root / config["site_dir"], root / config["docs_dir"]
    problems = write(root, config) if arguments == ["write"] else check(site, folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
