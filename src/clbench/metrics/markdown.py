"""Write the tables of docs/metrics.md between their markers: ``python -m clbench.metrics.markdown docs/metrics.md``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from clbench.metrics.metric import Metric
from clbench.metrics.quality import QUALITIES, Quality
from clbench.metrics.registry import BUILT_IN


def tables() -> dict[str, str]:
    """Return the table of each marker: ``qualities``, ``computed`` for metrics computed from R, ``other`` for other metrics."""
    return {
        "qualities": table_of_qualities(QUALITIES.values()),
        "computed": table(metric for metric in BUILT_IN.values() if metric.function is not None),
        "other": table(metric for metric in BUILT_IN.values() if metric.function is None),
    }


def table(metrics: Iterable[Metric]) -> str:
    """Return a table with a row per metric."""
    better = {True: "higher", False: "lower", None: ""}
    rows = [
        f"| `{metric.name}` | {f'`{metric.formula}`' if metric.formula else ''} | {metric.meaning}"
        f"{f' ({metric.source})' if metric.source else ''} | {metric.unit} | {better[metric.higher_is_better]} |"
        for metric in metrics
    ]
    return "\n".join(["| key | formula | meaning | unit | better |", "|---|---|---|---|---|", *rows])


def table_of_qualities(qualities: Iterable[Quality]) -> str:
    """Return a table with a row per quality."""
    rows = [
        f"| `{quality.name}` | {quality.meaning} | {'0 to 1' if quality.is_share else 'at least 0'} | {quality.direction} |"
        for quality in qualities
    ]
    return "\n".join(["| name | meaning | values | better |", "|---|---|---|---|", *rows])


def insert(text: str) -> str:
    """Return ``text`` with the tables between ``<!-- metrics: NAME -->`` and ``<!-- end -->``."""
    for name, rows in tables().items():
        start, end = f"<!-- metrics: {name} -->", "<!-- end -->"
        pattern = f"{re.escape(start)}.*?{re.escape(end)}"
        text, found = re.subn(pattern, lambda _, new=f"{start}\n{rows}\n{end}": new, text, flags=re.DOTALL)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"expected one {start} ... {end}, got {found}")
    return text


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(insert(page.read_text(encoding="utf-8")), encoding="utf-8")
