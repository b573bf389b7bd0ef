#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Checks that no link between the files of a directory of HTML pages is dead.

The target of a link must be a file, and for a link to an element (#name) the file must have an element of that name.
rustdoc has checked the links of its own pages below api/: here they are only targets.

Usage: doc-links.py DIRECTORY
"""

import os
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "object": "data", "image": "xlink:href"}
NOT_OURS = "api"


class Page(HTMLParser):
    """The links of a page, with their lines, and the names of its elements."""

    def __init__(self, path):
        super().__init__()
        self.links, self.names = [], set()
        with open(path, encoding="utf-8") as f:
            self.feed(f.read())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names.update(filter(None, (attrs.get("id"), attrs.get("name") if tag == "a" else None)))
        if attrs.get(LINKS.get(tag)):
            self.links.append((self.getpos()[0], attrs[LINKS[tag]]))


class Site:
    def __init__(self, top):
        self.top, self.pages = os.path.abspath(top), {}

    def page(self, path):
        if path not in self.pages:
            self.pages[path] = Page(path)
        return self.pages[path]

    def own_pages(self):
        for where, directories, names in os.walk(self.top):
            if where == self.top and NOT_OURS in directories:
                directories.remove(NOT_OURS)
            yield from (os.path.join(where, name) for name in sorted(names) if name.endswith(".html"))

    def problem(self, path, link):
        """What is wrong with a link of the page at a path; None if it leads somewhere, or out."""
        url = urlsplit(link)
        if url.scheme or url.netloc:
            return None
        target = path if not url.path else os.path.join(os.path.dirname(path), unquote(url.path))
        target = os.path.normpath(target)
        if not target.startswith(self.top + os.sep):
            return "leads out of the documentation"
        if not os.path.isfile(target):
            return "there is no such file"
        if url.fragment and target.endswith(".html") and \
                unquote(url.fragment) not in self.page(target).names:
            return "there is no such place in that page"
        return None


def main():
    site = Site(sys.argv[1])
    pages = links = dead = 0
    for path in site.own_pages():
        pages += 1
        for line, link in site.page(path).links:
            links += 1
            if problem := site.problem(path, link):
                dead += 1
                print(f"{os.path.relpath(path, site.top)}:{line}: {link}: {problem}", file=sys.stderr)
    print(f"    {links} links in {pages} pages", file=sys.stderr)
    sys.exit(1 if dead or not pages else 0)


if __name__ == "__main__":
    main()
