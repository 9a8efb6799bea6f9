"""A page as its elements and its text, and what every page must be."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "input", "img", "hr"}


class PageReader(HTMLParser):
    """Elements, ids and text of a page; every element must be closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.headings: list[int] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs, closed=True)

    def handle_starttag(self, tag, attrs, closed=False):
        self.elements[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"href", "src", "xlink:href", "action", "srcset"}:
                self.links.append(value)
            if name.startswith("on"):
                self.handlers.append(name)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in _VOID and not closed:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open[-1:] != [tag]:
            raise AssertionError(f"</{tag}> closes {self.open[-3:]} at {self.getpos()}")
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def require_sound(page: str) -> PageReader:
    """One file with every element closed, headings in order, no handler, nothing loaded, no dead link."""
    read = PageReader(page)
    assert read.elements["h1"] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(read.headings))
    assert [name for name, count in Counter(read.ids).items() if count > 1] == []
    assert read.handlers == []
    assert all(link == "data:," or link.startswith("#") for link in read.links)
    assert {link[1:] for link in read.links if link.startswith("#")} <= set(read.ids)
    assert not re.search(r"@import|url\((?!#)", page)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "var(--" in page
    assert not re.search("#0a0b[0-9]{2}", page)
    page.encode("utf-8")
    return read
