"""Which folders hold runs, and what lies in each: plain dictionaries, nothing is computed here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from clbench.config.hashing import leaves
from clbench.errors import ConfigError
from clbench.runs.folder import FAILED
from clbench.runs.sweep_index import read_index


class Found(NamedTuple):
    """One run as it lies on disk.

    ``config`` is flat (``{"data.tasks": 5}``), ``choices`` the option of each group, both empty where the run did not get
    as far as to write them; ``metrics`` is None where there are none, then ``problem`` says why; ``failure`` is how it ended
    where it failed.
    """

    folder: Path
    config: dict[str, Any]
    choices: dict[str, Any]
    overrides: list[str]
    metrics: dict[str, Any] | None
    problem: str | None
    failure: str | None


def find(folders: Iterable[Path]) -> list[Path]:
    """The run folders at or below ``folders``, each once; those of a sweep in its order.

    Raises:
        ConfigError: one of ``folders`` is not there, or there is no run in it.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is not a folder: give the output_dir of runs or of sweeps, or a folder above them"
            )
        here = list(_below(folder, folder.name in read_index(folder.parent)["cells"]))
        if not here:
            raise ConfigError(
                f"no runs in {folder}: a run is a folder with .hydra/ and metrics.json, as clbench.train writes it"
            )
        root, whole = len(str(folder)), str(folder.resolve())
        for run in here:
            found.setdefault(whole + str(run)[root:], run)
    return list(found.values())


def _below(folder: Path, of_sweep: bool) -> Iterator[Path]:
    """Run folders; the folder of a cell of a sweep is one even if it is empty, because its run failed early."""
    with os.scandir(folder) as entries:
        there = {entry.name: entry for entry in entries}
    if of_sweep or ".hydra" in there or "metrics.json" in there:
        yield folder
        return
    inside = [name for name, entry in there.items() if not name.startswith(".") and entry.is_dir()]
    cells = list(read_index(folder)["cells"])
    place = {name: number for number, name in enumerate(cells)}
    for name in sorted(inside, key=lambda name: (place.get(name, -1), int(name) if name.isdigit() else -1, name)):
        yield from _below(folder / name, name in place)


def load(folder: Path) -> Found:
    """What lies in a run folder; never raises for what is missing or cannot be read."""
    hydra = folder / ".hydra"
    config = parse(_text(hydra / "config.yaml"))
    choices = re.search(r"^ +choices:\n((?: {6}.*\n)+)", _text(hydra / "hydra.yaml"), re.MULTILINE)
    overrides = parse(_text(hydra / "overrides.yaml"))
    file = folder / "metrics.json"
    problem, metrics = None, None
    failure = _text(folder / FAILED).partition("\n")[0] or None
    try:
        metrics = json.loads(file.read_bytes())
        if not isinstance(metrics, dict):
            problem, metrics = "metrics.json is not one of clbench", None
    except FileNotFoundError:
        problem = failure or "no metrics.json: it ended before its first task did"
    except (OSError, ValueError) as error:
        problem = f"metrics.json cannot be read: {error}"
    if problem is None and not config:
        problem, metrics = "no .hydra/config.yaml that can be read: nothing says what was run", None
    return Found(
        folder,
        config,
        parse(re.sub("^ {6}", "", choices[1], flags=re.MULTILINE)) if choices else {},
        [str(item) for item in overrides.values()],
        metrics,
        problem,
        failure,
    )


def parse(text: str) -> dict[str, Any]:
    """Yaml as Hydra writes it, flat: ``a.b`` for nested keys, items of a list at the top level by number.

    Runs of a sweep share almost all of their text, so it is read block by block, equal blocks once.
    """
    items: dict[str, Any] = {}
    for block in re.split(r"^(?=- )" if text.startswith("- ") else r"^(?=[^\s-])", text, flags=re.MULTILINE):
        for key, value in _block(block):
            items[str(len(items)) if key == "-" else key] = value
    return items


@lru_cache(maxsize=50_000)
def _block(text: str) -> tuple[tuple[str, Any], ...]:
    try:
        value = OmegaConf.to_container(OmegaConf.create(text))
    except Exception:  # a file that is not yaml has no keys
        return ()
    if isinstance(value, list):
        return tuple(("-", item) for item in value)
    return tuple(leaves(value)) if isinstance(value, dict) else ()


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
