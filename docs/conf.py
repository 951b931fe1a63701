"""The documentation site: ``sphinx-build -W -c docs . build/site``, from the root of the checkout.

The root is the source folder, so that pages link to ../results and ../CHANGELOG.md as they do in the repository.
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
html_theme = "furo"
html_title = f"clbench {release}"
html_additional_pages = {"index": "to_docs.html"}  # / leads to /docs/
html_show_sourcelink = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what arguments are
napoleon_use_param = False  # what is documented together stays together
maximum_signature_line_length = 100


def as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text with formulas: `*` and `|` mean themselves, an indented paragraph is kept as it is."""
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
    line = re.sub(r"^(``\w+``)\s{2,}", r"- \1: ", line)  # a table of names
    parts = re.split(r"(``.*?``)", line)
    return "".join(part if part.startswith("``") else re.sub(r"(?<!\*)\*(?!\*)|\|", r"\\\g<0>", part) for part in parts)


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", as_written, priority=400)  # before napoleon
