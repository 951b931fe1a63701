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
from clbench.config.options import OPTIONS
from clbench.errors import ConfigError
from clbench.runs.folder import FAILED
from clbench.runs.sweep_index import read_index


class FoundRun(NamedTuple):
    """What is in the folder of one run.

    Attributes:
        folder: The run's folder.
        config: Dotted keys and values (``{"data.tasks": 5}``); empty where the run did not get as far as to write them.
        derived: Keys of ``config`` whose values follow from other keys (``strategy.lam`` from ``lam``).
        choices: The yaml chosen in each group.
        options: The top-level options that the strategy has.
        overrides: What was typed.
        metrics: metrics.json; None where there is none, then ``problem`` says why.
        problem: Why there are no metrics.
        failure: How the run ended where it failed.
    """

    folder: Path
    config: dict[str, Any]
    derived: frozenset[str]
    choices: dict[str, Any]
    options: list[str]
    overrides: list[str]
    metrics: dict[str, Any] | None
    problem: str | None
    failure: str | None


def find_runs(folders: Iterable[Path]) -> list[Path]:
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
        here = list(_below(folder, folder.name in read_index(folder.parent)["runs"]))
        if not here:
            raise ConfigError(
                f"no runs in {folder}: a run is a folder with config.json and metrics.json, as clbench.train writes it"
            )
        whole = folder.resolve()
        for run in here:
            found.setdefault(str(whole / run.relative_to(folder)), run)
    return list(found.values())


def _below(folder: Path, of_sweep: bool) -> Iterator[Path]:
    """Run folders; the folder of a run of a sweep is one even if it is empty, because its run failed early."""
    with os.scandir(folder) as entries:
        there = {entry.name: entry for entry in entries}
    if of_sweep or "config.json" in there or ".hydra" in there or "metrics.json" in there:
        yield folder
        return
    inside = [name for name, entry in there.items() if not name.startswith(".") and entry.is_dir()]
    runs = list(read_index(folder)["runs"])
    place = {name: number for number, name in enumerate(runs)}
    for name in sorted(inside, key=lambda name: (place.get(name, -1), int(name) if name.isdigit() else -1, name)):
        yield from _below(folder / name, name in place)


def read_run(folder: Path) -> FoundRun:
    """Return what is in a run folder; never raises for what is missing or cannot be read."""
    configuration = _of_config_json(folder) or _of_hydra(folder)
    problem, metrics = None, None
    failure = _text(folder / FAILED).partition("\n")[0] or None
    try:
        metrics = json.loads((folder / "metrics.json").read_bytes())
        if not isinstance(metrics, dict):
            problem, metrics = "metrics.json is not one of clbench", None
    except FileNotFoundError:
        problem = failure or "no metrics.json: it ended before its first task did"
    except (OSError, ValueError) as error:
        problem = f"metrics.json cannot be read: {error}"
    if problem is None and not configuration["config"]:
        problem, metrics = "no config.json that can be read: nothing says what was run", None
    return FoundRun(folder=folder, metrics=metrics, problem=problem, failure=failure, **configuration)


def _of_config_json(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of a run in config.json; None if there is none."""
    try:
        content = json.loads(_text(folder / "config.json"))
        return {
            "config": dict(leaves(content["config"])),
            "derived": frozenset(content["derived"]),
            "choices": dict(content["choices"]),
            "options": list(content["options"]),
            "overrides": list(content["overrides"]),
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _of_hydra(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run of a version without config.json, from ``.hydra``."""
    hydra = folder / ".hydra"
    config = parse(_text(hydra / "config.yaml"))
    choices = re.search(r"^ +choices:\n((?: {6}.*\n)+)", _text(hydra / "hydra.yaml"), re.MULTILINE)
    refers = {key: value for key, value in config.items() if isinstance(value, str) and "${" in value}
    of_strategy = " ".join(value for key, value in refers.items() if key.startswith("strategy."))
    return {
        "config": config,
        "derived": frozenset(refers),
        "choices": parse(re.sub("^ {6}", "", choices[1], flags=re.MULTILINE)) if choices else {},
        "options": [name for name in OPTIONS if f"${{{name}}}" in of_strategy],
        "overrides": [str(item) for item in parse(_text(hydra / "overrides.yaml")).values()],
    }


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
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
