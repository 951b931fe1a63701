"""verify: one row of committed results, run again from nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from clbench.errors import ConfigError
from reproduction.here import hash_of, train_here
from reproduction.plan import reading


def verify(found: dict[str, Any], seed: int, row_name: str | None = None) -> int:
    """Recompute a run of ``found`` (a results/NAME.json), print both and return the exit code: 0 if they are identical.

    The run is at the chosen point where the row has a grid. On another machine or with other versions, the last digits
    of the weights differ, and with them perhaps a prediction.

    Raises:
        ConfigError: there is no such row or seed.
    """
    cell = committed_cell(found, seed, row_name)
    overrides = tuple(cell["overrides"])
    with tempfile.TemporaryDirectory() as folder:
        metrics = train_here((*overrides, f"seed={seed}"), Path(folder) / "run")
    now = hash_of(overrides, seed)
    print(" ".join(["python -m clbench.train", *overrides, f"seed={seed}"]))
    if now != cell["config_hash"]:
        print(f"the configuration has changed since: {cell['config_hash']} is now {now}")
    identical = True
    for metric, key in found["metrics"].items():
        before, again = cell["values"][metric], reading(metrics, key)
        identical &= before == again
        said = "identical" if before == again else f"differs by {again - before:+.6f}"
        print(f"{metric:30} committed {before:.6f}  now {again:.6f}  {said}")
    return 0 if identical else 1


def committed_cell(found: dict[str, Any], seed: int, row_name: str | None) -> dict[str, Any]:
    """The run of a row (the first one if None) with a seed, at the chosen point; see ``verify``."""
    rows = {row["name"]: row for row in found["rows"]}
    if row_name is not None and row_name not in rows:
        raise ConfigError(f"--row {row_name}: the rows are {', '.join(rows)}")
    row = rows[row_name] if row_name is not None else found["rows"][0]
    chosen = row["selections"][0]["config_hashes"]
    cells = {cell["seed"]: cell for cell in row["cells"] if cell["config_hash"] in chosen}
    if seed not in cells:
        raise ConfigError(f"--seed {seed}: the seeds of {row['name']} are {', '.join(map(str, sorted(cells)))}")
    cell: dict[str, Any] = cells[seed]
    return cell
