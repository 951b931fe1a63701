"""Text that every Python installation has, extracted by rule: the domains of ``text_domains``."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from clbench.errors import DataError

SUMS = 60_000
"""Lines of the domain ``sums``."""


def documentation() -> bytes:
    """Return the help texts of Python's language reference (pydoc_data.topics), in the order of their names."""
    from pydoc_data.topics import topics  # imported late, because some installations leave it out

    return "\n".join(topics[name] for name in sorted(topics)).encode()


def source() -> bytes:
    """Return the modules of the standard library that are one public .py file, in the order of their names.

    Packages are left out, so tests and pydoc_data are too.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in folder.glob("*.py") if not file.name.startswith("_"))
    return b"\n".join(file.read_bytes() for file in files)


def unicode() -> bytes:
    r"""Return the code point, category and name of each character, one per line, in a fixed random order.

    Characters whose name contains their code point, such as CJK ideographs, are left out, and so are Hangul syllables, whose
    names follow from a rule.

    >>> b"\n0041 Lu LATIN CAPITAL LETTER A\n" in unicode()
    True
    """
    from unicodedata import category, name  # imported late, because it is an extension that a small Python may lack

    lines = []
    for code in range(0x110000):
        of_character = name(chr(code), "")
        if of_character and f"{code:04X}" not in of_character and not of_character.startswith("HANGUL SYLLABLE"):
            lines.append(f"{code:04X} {category(chr(code))} {of_character}")
    order = np.random.default_rng(0).permutation(len(lines))
    return "\n".join(lines[row] for row in order).encode()


def sums() -> bytes:
    """Return sums of two random numbers below 1,000, one per line. They do not depend on the version of Python.

    >>> sums()[:12]
    b'850+636=1486'
    """
    pairs = np.random.default_rng(0).integers(1000, size=(SUMS, 2)).tolist()
    return "\n".join(f"{a}+{b}={a + b}" for a, b in pairs).encode()


EXTRACTS: dict[str, Callable[[], bytes]] = {
    "documentation": documentation,
    "source": source,
    "unicode": unicode,
    "sums": sums,
}
"""Name of a domain -> the function that returns its text."""


@cache
def extract(domain: str) -> bytes:
    """Return the text of ``domain``, a name in ``EXTRACTS``.

    Raises:
        ConfigError: This Python installation does not have the text, because it is embedded or its standard library is in a zip
            file.
    """
    try:
        text = EXTRACTS[domain]()
    except ImportError:
        text = b""
    if not text:
        raise DataError(
            f"text domain {domain}: this Python installation does not have its text. Leave the domain out, or use your own .txt "
            "files with clbench.data.text_folders and data.source.folders=[FOLDER,...]."
        )
    return text
