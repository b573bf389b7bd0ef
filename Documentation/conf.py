# SPDX-License-Identifier: GPL-2.0
"""How Sphinx builds the documentation; "make doc" runs it. After the kernel's Documentation/conf.py."""

import os
import sys

sys.path.insert(0, os.path.abspath("sphinx"))

project = "gpusvm"
author = "The gpusvm authors"
copyright = author

extensions = ["sphinx.ext.graphviz", "rustdoc_links", "document_paths"]
exclude_patterns = ["sphinx"]
nitpicky = True

# As the kernel's: a block without a language is plain text, and -- stays --.
highlight_language = "none"
smartquotes = False
primary_domain = None
pygments_style = "sphinx"

graphviz_output_format = "svg"

# The directory of rustdoc's pages inside of the output, or "" if they are not there: then what
# would be a link to them is plain text.
rustdoc_directory = os.environ.get("GPUSVM_RUSTDOC", "")

html_theme = "alabaster"
html_title = project
html_static_path = ["sphinx/static"]
html_css_files = ["gpusvm.css"]
html_theme_options = {
    "description": "GPU shared virtual memory for Linux 7.3, in Rust",
    "page_width": "75em",
    "sidebar_width": "16em",
    "fixed_sidebar": "true",
    "font_size": "inherit",
    "font_family": "sans-serif",
    "head_font_family": "sans-serif",
    "show_powered_by": "false",
    "show_relbars": "true",
}
templates_path = ["sphinx/templates"]
html_sidebars = {"**": ["about.html", "searchbox.html", "localtoc.html", "all-pages.html"]}
html_context = {"rustdoc_directory": rustdoc_directory}
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
