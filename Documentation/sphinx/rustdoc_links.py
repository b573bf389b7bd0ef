# SPDX-License-Identifier: GPL-2.0
"""The role "api": a link to a Rust item's page, as rustdoc made it.

:api:`Driver::invalidate` finds the item by the end of its path, wherever it is; a longer path
(:api:`gpusvm::guard::LockedRange`) tells two items of one name apart. The text of a function is
followed by "()", and :api:`~pagemap::Cache` shows the last part of the path only.

A path that names no item, or more than one, is a warning, and so fails the build.
"""

import os
import re

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

# The kinds of items that have a page, as rustdoc abbreviates them in file names.
PAGE = re.compile(r"(struct|enum|union|trait|fn|macro|type|constant|static|attr|derive)\.(\w+)\.html$")
# The kinds of items that are a part of another one's page.
PART = re.compile(
    r'id="((method|tymethod|structfield|variant|associatedconstant|associatedtype)\.(\w+))"')
FUNCTIONS = ("fn", "method", "tymethod")

logger = logging.getLogger(__name__)


class Index:
    """The items of all crates. Keys are last parts of paths; values, paths with their pages."""

    def __init__(self, directory):
        self.items = {}
        for where, _, names in os.walk(directory):
            module = os.path.relpath(where, directory).split(os.sep)
            if module[0] in (".", "src", "static.files", "search.desc", "trait.impl", "type.impl"):
                continue
            for name in names:
                if name == "index.html":
                    self.add("mod", module, "/".join([*module, name]))
                elif match := PAGE.match(name):
                    self.add_page(where, module, name, *match.groups())

    def add(self, kind, path, page):
        self.items.setdefault(path[-1], []).append((kind, path, page))

    def add_page(self, where, module, name, kind, item):
        page = "/".join([*module, name])
        self.add(kind, [*module, item], page)
        with open(os.path.join(where, name), encoding="utf-8") as f:
            text = f.read()
        # What an item has by others' traits (Clone, Into, ...) is none of its own.
        text = re.split(r'<h2 id="(?:trait|synthetic|blanket)-implementations"', text)[0]
        seen = set()
        for anchor, part, member in PART.findall(text):
            if member not in seen:
                seen.add(member)
                self.add(part, [*module, item, member], f"{page}#{anchor}")

    def find(self, path):
        return [
            found for found in self.items.get(path[-1], []) if found[1][-len(path) :] == path
        ]


class ApiRole(SphinxRole):
    def run(self):
        short = self.text.startswith("~")
        path = self.text.lstrip("~").split("::")
        text = path[-1] if short else "::".join(path)
        node = nodes.literal(self.rawtext, text)
        index = self.env.app.rustdoc_index
        if index is None:
            return [node], []
        found = index.find(path)
        if len(found) != 1:
            choice = ", ".join("::".join(item[1]) for item in found) or "none"
            logger.warning("api item %s: there should be one, and there are: %s", self.text, choice,
                           location=self.get_location())
            return [node], []
        kind, _, page = found[0]
        if kind in FUNCTIONS:
            node = nodes.literal(self.rawtext, text + "()")
        up = "../" * self.env.docname.count("/")
        link = nodes.reference(self.rawtext, "", node, internal=True,
                               refuri=f"{up}{self.config.rustdoc_directory}/{page}")
        return [link], []


def load(app):
    directory = app.config.rustdoc_directory
    app.rustdoc_index = Index(os.path.join(app.outdir, directory)) if directory else None


def setup(app):
    app.add_config_value("rustdoc_directory", "", "env")
    app.add_role("api", ApiRole())
    app.connect("builder-inited", load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
