"""Rerun one run of committed results and compare."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from clbench.errors import ConfigError
from reproduction.here import hash_of, train_here
from reproduction.plan import read_number


def verify(found: dict[str, Any], seed: int, row_name: str | None = None) -> int:
    """Rerun a run of ``found``, the content of a results/NAME.json, and print old and new values.

    In a row with a grid, it is a run at the chosen point. On another machine or with other versions, the last digits of the
    weights may differ, and so may a prediction.

    Returns:
        Exit code, 0 if all values are identical.

    Raises:
        ConfigError: There is no such row or seed.
    """
    cell = committed_cell(found, seed, row_name)
    overrides = tuple(cell["overrides"])
    with tempfile.TemporaryDirectory() as folder:
        metrics = train_here((*overrides, f"seed={seed}"), Path(folder) / "run")
    now = hash_of(overrides, seed)
    print(" ".join(["python -m clbench.train", *overrides, f"seed={seed}"]))
    if now != cell["config_hash"]:
        print(f"the configuration has changed: its hash was {cell['config_hash']} and is now {now}")
    identical = True
    for metric, key in found["metrics"].items():
        before, again = cell["values"][metric], read_number(metrics, key)
        identical &= before == again
        outcome = "identical" if before == again else f"differs by {again - before:+.6f}"
        print(f"{metric:30} committed {before:.6f}  now {again:.6f}  {outcome}")
    return 0 if identical else 1


def committed_cell(found: dict[str, Any], seed: int, row_name: str | None) -> dict[str, Any]:
    """Return the run of a row (by default the first one) with a seed at the chosen point, see ``verify``."""
    rows = {row["name"]: row for row in found["rows"]}
    if row_name is not None and row_name not in rows:
        raise ConfigError(f"--row {row_name}: expected one of {', '.join(rows)}.")
    row = rows[row_name] if row_name is not None else found["rows"][0]
    chosen = row["selections"][0]["config_hashes"]
    cells = {cell["seed"]: cell for cell in row["cells"] if cell["config_hash"] in chosen}
    if seed not in cells:
        raise ConfigError(
            f"--seed {seed}: expected a seed of {row['name']}, one of {', '.join(map(str, sorted(cells)))}."
        )
    cell: dict[str, Any] = cells[seed]
    return cell
