"""The texts of the project use none of the words in dialect.toml, which says what to write instead."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = tomllib.loads((ROOT / "tests/dialect.toml").read_text(encoding="utf-8"))
FOLDERS = ("src", "conf", "docs", "scripts", "tests", "notebooks", "results", ".github", ".ci")
KINDS = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".html", ".ipynb", ".css", ""}
NOT_PROSE = re.compile(r"tests/(dialect\.toml|finished_runs|older_run)|docs/figures/|__pycache__|\.egg-info")
QUOTED = re.compile(r"^\s*>.*$", re.MULTILINE)  # a quotation in Markdown


def texts() -> Iterator[tuple[str, str]]:
    """(path, text) of every file that people read."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *(f for folder in FOLDERS for f in (ROOT / folder).rglob("*"))]
    for file in sorted(files):
        path = file.relative_to(ROOT).as_posix()
        if file.is_file() and file.suffix in KINDS and not NOT_PROSE.search(path):
            yield path, QUOTED.sub("", file.read_text(encoding="utf-8"))


def violations(text: str, pattern: str, allowed: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, its text) for each use of ``pattern`` outside the ``allowed`` phrases; a phrase may run over a line's end."""
    flat = re.sub(r"\s", " ", text)
    spans = [m.span() for phrase in allowed for m in re.finditer(re.escape(phrase), flat, re.IGNORECASE)]
    for match in re.finditer(pattern, flat, re.IGNORECASE):
        if not any(start <= match.start() and match.end() <= end for start, end in spans):
            line = text.count("\n", 0, match.start())
            yield line + 1, text.splitlines()[line].strip()


def test_no_text_uses_a_word_of_the_dialect():
    found = []
    for path, text in texts():
        for pattern, rule in WORDS.items():
            for line, content in violations(text, pattern, rule.get("allow", [])):
                found.append(f"{path}:{line}: {pattern!r} (write: {rule['write']}): {content[:100]}")
    assert not found, f"{len(found)} uses\n" + "\n".join(found)


def test_violations_are_found_across_lines():
    text = "It lies\nin a folder.\nA held-out set is held.\n> He said so.\n"
    assert [n for n, _ in violations(text, r"(lies|lie) in", [])] == [1]
    assert [line for _, line in violations(text, r"\bheld\b", ["held-out"])] == ["A held-out set is held."]
    assert not re.search("said", QUOTED.sub("", text))
