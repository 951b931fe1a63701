"""Small pieces of the page: text -> html."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a table: its html, and what it is sorted by if that is not its text."""

    html: str
    value: float | None = None


class Head(NamedTuple):
    """A heading: text, what it means, whether the column is text, and whether a first click puts the lowest on top."""

    text: str
    meaning: str = ""
    is_text: bool = False
    ascending: bool = True


def table(heads: Sequence[Head], rows: Iterable[tuple[str, Sequence[Cell]]], kind: str = "sort pin wide") -> str:
    """A table in a box that scrolls sideways.

    Args:
        heads: the headings.
        rows: (class of the row, its cells).
        kind: classes of the table; ``sort`` makes its headings buttons.
    """
    return "".join(
        (
            f'<div class="scroll"><table class="{kind}"><thead><tr>',
            *(_heading(head, "sort" in kind) for head in heads),
            "</tr></thead><tbody>",
            *(_row(name, cells, heads) for name, cells in rows),
            "</tbody></table></div>",
        )
    )


def _heading(head: Head, sorts: bool) -> str:
    text = f'<button type="button">{escape(head.text)}</button>' if sorts else escape(head.text)
    title = f' title="{escape(head.meaning)}"' if head.meaning else ""
    first = "" if head.ascending else ' data-first="descending"'
    return f'<th scope="col"{" class=t" if head.is_text else ""}{title}{first}>{text}</th>'


def _row(name: str, cells: Sequence[Cell], heads: Sequence[Head]) -> str:
    inner = "".join(
        f"<td{' class=t' if head.is_text else ''}"
        f"{'' if cell.value is None else f' data-v={_plain(cell.value)}'}>{cell.html}</td>"
        for cell, head in zip(cells, heads, strict=True)
    )
    return f"<tr{f' class={name}' if name else ''}>{inner}</tr>"


def _plain(value: float) -> str:
    return f'"{value:.10g}"' if value == value else '""'


def counted(n: int, what: str, bold: bool = False) -> str:
    """1 seed, 3 seeds."""
    number = f"<b>{n:,}</b>" if bold else f"{n:,}"
    return f"{number} {what}{'' if n == 1 else 's'}"


def card(*parts: str, title: str = "", note: str = "", kind: str = "") -> str:
    """A box with a title and a line that says how to read it."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    line = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="card{f" {kind}" if kind else ""}">{head}{line}{"".join(parts)}</section>'
