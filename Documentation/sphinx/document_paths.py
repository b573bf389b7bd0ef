# SPDX-License-Identifier: GPL-2.0
"""Makes links of paths such as Documentation/testing.rst, as the kernel's automarkup does.

A path of a page that does not exist is a warning.
"""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

PATH = re.compile(r"\bDocumentation/([\w/-]+)\.rst\b")


class DocumentPaths(SphinxTransform):
    """Each path in running text becomes a cross-reference, which Sphinx resolves as it does :doc:."""

    default_priority = 10

    def apply(self):
        for text in list(self.document.findall(nodes.Text)):
            if isinstance(text.parent, (nodes.literal, nodes.literal_block, nodes.reference, nodes.raw)):
                continue
            parts = self.split(str(text))
            if len(parts) > 1:
                text.parent.replace(text, parts)

    def split(self, text):
        parts, end = [], 0
        for match in PATH.finditer(text):
            link = addnodes.pending_xref(
                "", nodes.inline(match[0], match[0]), refdomain="std", reftype="doc",
                reftarget="/" + match[1], refdoc=self.env.docname, refexplicit=False, refwarn=True)
            parts += [nodes.Text(text[end : match.start()]), link]
            end = match.end()
        return parts + [nodes.Text(text[end:])]


def setup(app):
    app.add_transform(DocumentPaths)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
