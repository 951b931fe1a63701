"""Rename keys and recompute hashes in results/*.json: ``python scripts/migrate_results.py``, run once for schema 1.

A run is identified by its overrides and seed, so its new hash follows from the renamed overrides. Numbers are not touched.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from reproduction.here import hash_of

RESULTS = Path(__file__).resolve().parents[1] / "results"

RENAMED = {
    r"\bdata\.cut\b": "data.split",
    r"\boptimizer\.make\.lr\b": "lr",
    r"\bjoint_scratch\b": "joint_from_scratch",
    r"\bstrategy\.draws\b": "strategy.label_samples",
    r"\bfirst_tasks\b": "stop_after_task",
}


def renamed(value: Any) -> Any:
    """Return ``value`` with the new names in its keys and texts."""
    if isinstance(value, dict):
        return {renamed(key): renamed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner) for inner in value]
    if isinstance(value, str):
        for old, new in RENAMED.items():
            value = re.sub(old, new, value)
    return value


def migrate(found: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a results/NAME.json with new names and hashes."""
    found = renamed(found)
    hashes: dict[str, str] = {}
    for row in found["rows"]:
        for cell in row["cells"]:
            new = hash_of(tuple(cell["overrides"]), cell["seed"])
            assert hashes.setdefault(cell["config_hash"], new) == new, cell
            cell["config_hash"] = new
    for row in found["rows"]:
        for selection in row["selections"]:
            selection["config_hashes"] = [hashes[old] for old in selection["config_hashes"]]
    return found


def main() -> None:
    """Migrate every file of results/ in place."""
    for file in sorted(RESULTS.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(migrate(found), indent=1) + "\n", encoding="utf-8")
        print(file.name, flush=True)


if __name__ == "__main__":
    main()
