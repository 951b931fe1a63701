"""Sphinx configuration of the documentation: run ``sphinx-build -W -c docs . build/site`` in the root of the checkout.

The source folder is the root, so links from the pages to ../results and ../CHANGELOG.md work here and in the repository.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import Any

project = "clbench"
author = "The clbench team"
release = version_of("clbench")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/**", "results/**", "CHANGELOG.md", "CONTRIBUTING.md"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["results.css"]
html_js_files = ["sort.js"]
html_theme = "furo"
html_title = f"clbench {release}"
html_additional_pages = {"index": "to_docs.html"}  # redirects / to /docs/
html_show_sourcelink = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings describe the arguments
napoleon_use_param = False  # keeps arguments that share a description in one entry
maximum_signature_line_length = 100


def escape_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert a docstring in ``lines`` to reStructuredText, in place.

    Our docstrings are plain text with formulas. This escapes ``*`` and ``|`` and makes indented paragraphs literal blocks.
    """
    written: list[str] = []
    literal = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            literal = False
        elif (
            indented and not literal and number > 1 and not lines[number - 1] and not lines[number - 2].startswith(" ")
        ):
            literal = True
            written += ["::", ""]
        written.append(line if literal or ">>>" in line else _escaped(line))
    lines[:] = written


def _escaped(line: str) -> str:
    """Return ``line`` with ``*`` and ``|`` escaped outside literals, and as a list item if it describes a name."""
    line = re.sub(r"^(``\w+``)\s{2,}", r"- \1: ", line)
    parts = re.split(r"(``.*?``)", line)
    return "".join(part if part.startswith("``") else re.sub(r"(?<!\*)\*(?!\*)|\|", r"\\\g<0>", part) for part in parts)


def setup(app: Any) -> None:
    """Register ``escape_docstring``. Sphinx calls this function."""
    app.connect(
        "autodoc-process-docstring", escape_docstring, priority=400
    )  # napoleon has priority 500 and must run later
