"""A report's page as a browser would build it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HARMLESS = set(
    "html head meta title style body header main section footer p h1 h2 h3 b small br span div dl dt dd table thead "
    "tbody tr th td figure figcaption details summary article ul ol li pre svg g path circle text defs use clippath "
    "rect".split()
)
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects what a browser would build: elements, attributes, text, and whether tags are balanced."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.ids, self.open, self.text = set(), [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)

    def active(self):
        """Whatever could run or fetch: unknown elements, handlers, references that leave the page."""
        found = [tag for tag in self.tags if tag not in HARMLESS]
        for tag, name, value in self.attributes:
            inside = value.startswith("#")
            if name.startswith("on") or (name in ("href", "src", "action", "data", "srcset") and not inside):
                found.append(f"{tag} {name}={value}")
            if re.search(r"url\((?!#)|expression|javascript:", value):
                found.append(f"{tag} {name}={value}")
        return found
