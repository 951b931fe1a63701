"""What was asked for: the commands behind the runs, and the cells of a sweep that are not there."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from pandas import DataFrame

from clbench.config import OPTIONS


class Sweep(NamedTuple):
    """A folder with multirun.yaml: the overrides that were typed."""

    folder: Path
    overrides: list[str]

    @property
    def command(self) -> str:
        return shlex.join(["python", "-m", "clbench.train", "-m", *self.overrides])


def sweeps_of(runs: DataFrame) -> list[Sweep]:
    """The sweeps that the runs lie in, in the order of the runs."""
    folders = dict.fromkeys(Path(folder).parent for folder in runs.folder)
    return [sweep for folder in folders if (sweep := _sweep(folder)) is not None]


def _sweep(folder: Path) -> Sweep | None:
    file = folder / "multirun.yaml"
    if not file.is_file():
        return None
    try:  # the whole file is long, and says "overrides" once at this depth
        text = re.search(r"^  overrides:\n(?:    .*\n)+", file.read_text(), re.MULTILINE)
        typed: Any = OmegaConf.to_container(OmegaConf.create(text[0])) if text else {"overrides": {"task": []}}
        return Sweep(folder, [str(override) for override in typed["overrides"]["task"]])
    except Exception:  # a report does not fail for a file that only names the command
        return Sweep(folder, [])


def commands(runs: DataFrame) -> list[tuple[str, int]]:
    """The commands that made the runs, each with how many; a sweep is one command."""
    sweeps = {str(sweep.folder): sweep.command for sweep in sweeps_of(runs) if sweep.overrides}
    counted: dict[str, int] = defaultdict(int)
    for folder, overrides in zip(runs.folder, runs.overrides, strict=True):
        alone = shlex.join(["python", "-m", "clbench.train", *overrides])
        counted[sweeps.get(str(Path(folder).parent), alone if overrides else "(not known)")] += 1
    return list(counted.items())


def never_run(runs: DataFrame) -> list[tuple[str, str]]:
    """Cells that a sweep asked for and that have no folder of their own: (folder of the sweep, overrides).

    Cells that differ only in an option their strategy does not have are one.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    absent = []
    parser = OverridesParser.create()
    parents = runs.folder.map(lambda folder: str(Path(folder).parent))
    for sweep in sweeps_of(runs):
        mine = runs[parents == str(sweep.folder)]
        has = {row.strategy: set(row.options) for row in mine.itertuples()}
        there = {_key(_values(row.overrides), set(row.options)) for row in mine.itertuples()}
        try:
            parsed = parser.parse_overrides(sweep.overrides)
            asked = [
                [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
                if o.is_sweep_override()
                else [f"{o.get_key_element()}={o.get_value_element_as_str()}"]
                for o in parsed
            ]
        except Exception:  # such as glob(*), which needs the configuration folders
            continue
        several = [o.get_key_element() for o in parsed if o.is_sweep_override()]
        usual = next((row.strategy for row in mine.itertuples() if row.strategy), None)
        wanted: dict[Any, dict[str, str]] = {}
        for cell in itertools.product(*asked):
            values = _values(cell)
            wanted.setdefault(_key(values, has.get(values.get("strategy", usual), set(OPTIONS))), values)
        for key, values in wanted.items():
            if key not in there:
                absent.append((str(sweep.folder), " ".join(f"{name}={values[name]}" for name in several)))
    return absent


def _values(overrides: Sequence[str]) -> dict[str, str]:
    return dict(override.split("=", 1) for override in overrides if "=" in override)


def _key(values: dict[str, str], has: set[str]) -> frozenset[tuple[str, str]]:
    """What tells cells of one sweep apart."""
    return frozenset(item for item in values.items() if item[0] not in OPTIONS or item[0] in has)
