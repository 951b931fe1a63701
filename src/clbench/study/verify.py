"""Rerun one run of committed results and compare."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from clbench.errors import ConfigError
from clbench.study.collect import final_cells
from clbench.study.origin import machine
from clbench.study.plan import read_number
from clbench.study.runs import more_overrides
from clbench.train import run

TOLERANCE = 0.005
"""Largest difference of a value that ``agrees``."""

VERDICTS = ("identical", "agrees", "differs")
"""From best to worst."""


def verify(
    found: dict[str, Any],
    seed: int | None,
    row_name: str | None = None,
    typed: Sequence[str] = (),
    config_dir: Path | None = None,
) -> int:
    """Rerun a run of ``found``, the content of a study.json, and print old and new values with a verdict.

    In a row with a grid, it is a run at the chosen point. The verdict on a value is ``identical``; or ``agrees`` if the values
    differ by at most ``TOLERANCE`` and at most 2 standard errors of the row's committed seeds, because the last digits of the
    weights, and so a few predictions, differ between machines, versions and orders of summation; or else ``differs``. If the
    data have changed, such as texts that come with Python, only the standard errors count.

    Args:
        found: See above.
        seed: Seed of the run, None for the first one.
        row_name: Row of the run, None for the first one.
        typed: Overrides of the command that do not affect the results, such as ``data_dir=data``.
        config_dir: Folder with configuration groups, see ``clbench.run``.

    Returns:
        Exit code, 0 if all values are identical or agree.

    Raises:
        ConfigError: There is no such row or seed.
    """
    cell = committed_cell(found, seed, row_name)
    overrides, seed = tuple(cell["overrides"]), cell["seed"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*overrides, *more_overrides(overrides, typed), f"seed={seed}", "threads=1"]
        metrics = run(arguments, Path(folder) / "run", config_dir, quiet=True)
    now = metrics["config_hash"]
    print(" ".join(["python -m clbench.train", *overrides, f"seed={seed}"]))
    if now != cell["config_hash"]:
        print(f"the configuration has changed: its hash was {cell['config_hash']} and is now {now}")
    cells = committed_cells(found, row_name)
    verdicts, tolerance = set(), TOLERANCE
    if (data := cell.get("fingerprint")) is not None and data != metrics["data"].get("fingerprint"):
        before = ", ".join(sorted({f"Python {each['python']}" for each in found["versions"]}))
        print(f"the data differ from those of the committed run ({before}): values agree within 2 standard errors")
        tolerance = math.inf
    cpus = {machine["cpu"] for machine in found["machines"]}
    for metric, key in found["metrics"].items():
        before, again = cell["values"][metric], read_number(metrics, key)
        verdict = verdict_on(before, again, [other["values"][metric] for other in cells.values()], tolerance)
        verdicts.add(verdict)
        print(f"{metric:30} committed {before:.6f}  now {again:.6f}  {verdict} ({again - before:+.6f})")
    print(f"verdict: {max(verdicts, key=VERDICTS.index)}")
    if "differs" in verdicts and (cpu := machine()["cpu"]) not in cpus:
        print(
            f"the committed runs were made on {', '.join(sorted(cpus))}, this one on {cpu}: another order of summation"
        )
        print("changes the last digits of the weights, and long training amplifies this")
    return int("differs" in verdicts)


def verdict_on(before: float, again: float, committed: Sequence[float], tolerance: float = TOLERANCE) -> str:
    """Return the verdict on one value, given the values of all committed seeds and the largest difference that agrees."""
    if before == again:
        return "identical"
    error = stdev(committed) / len(committed) ** 0.5 if len(committed) > 1 else math.inf
    return "agrees" if abs(again - before) <= min(tolerance, 2 * error) else "differs"


def committed_cell(found: dict[str, Any], seed: int | None, row_name: str | None) -> dict[str, Any]:
    """Return the run of a row with a seed at the chosen point, see ``verify``."""
    cells = committed_cells(found, row_name)
    seed = min(cells) if seed is None else seed
    if seed not in cells:
        name = found["rows"][0]["name"] if row_name is None else row_name
        raise ConfigError(f"--seed {seed}: expected a seed of {name}, one of {', '.join(map(str, sorted(cells)))}.")
    return cells[seed]


def committed_cells(found: dict[str, Any], row_name: str | None) -> dict[int, dict[str, Any]]:
    """Return the runs of a row (by default the first one) at the chosen point, by seed."""
    rows = {row["name"]: row for row in found["rows"]}
    if row_name is not None and row_name not in rows:
        raise ConfigError(f"--verify {row_name!r}: expected one of {', '.join(rows)}.")
    return final_cells(rows[row_name] if row_name is not None else found["rows"][0])
