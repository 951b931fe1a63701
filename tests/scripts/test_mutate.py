"""The table of mutations fits the source. ``python scripts/mutate.py`` runs them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from mutate import mutate, mutations  # noqa: E402


def test_every_mutation_changes_one_place_and_names_its_tests():
    table = list(mutations())
    texts = {file: (ROOT / "src/clbench" / file).read_text(encoding="utf-8") for file in {m.file for m in table}}
    changed = {(mutation.file, mutate(texts[mutation.file], mutation)) for mutation in table}
    assert len(changed) == len(table)
    assert not changed & texts.items()
    for test in {test for mutation in table for test in mutation.tests}:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test
