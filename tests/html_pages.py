"""What tests ask of an HTML page."""

from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page's elements and visible text. Raises AssertionError where an element is not closed, or another one is."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def sections(self):
        return [attributes["id"] for attributes in self.all("section")]

    def needs_nothing_else(self):
        """Whether the page loads nothing from elsewhere and runs nothing."""
        loaded = [
            attributes[name]
            for _, attributes in self.elements
            for name in ("src", "srcset", "data")
            if name in attributes
        ]
        links = [attributes["href"] for _, attributes in self.elements if "href" in attributes]
        handlers = [name for _, attributes in self.elements for name in attributes if name.startswith("on")]
        return (
            all(url.startswith("data:image/") for url in loaded)
            and all(link.startswith("#") or link == "data:," for link in links)
            and not handlers
            and not self.all("script")
            and not self.all("iframe")
        )
