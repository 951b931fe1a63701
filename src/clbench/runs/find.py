"""Find run folders and read their files into plain dictionaries."""

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
    """Contents of a run folder.

    Attributes:
        folder: The run's folder.
        config: Dotted keys and values (``{"data.tasks": 5}``); empty if the run failed before it wrote them.
        derived: Keys of ``config`` that refer to other keys (``strategy.lam`` to ``lam``).
        choices: Name of the yaml chosen in each group.
        options: Top-level options of the strategy.
        overrides: The overrides of the command.
        metrics: Contents of metrics.json, None if they cannot be read.
        problem: Reason why ``metrics`` is None.
        failure: Error of a failed run.
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
    """Return the run folders at or below ``folders``, without repetition, and the runs of a sweep in its order.

    Raises:
        ConfigError: A folder does not exist or contains no runs.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"{folder}: expected a folder with runs, but there is no such folder. Try the output_dir of a run or of a sweep."
            )
        below = list(_below(folder, folder.name in read_index(folder.parent)["runs"]))
        if not below:
            raise ConfigError(
                f"{folder}: expected a folder with runs, found none. clbench train writes config.json and metrics.json to the "
                "folder of a run."
            )
        whole = folder.resolve()
        for run in below:
            found.setdefault(str(whole / run.relative_to(folder)), run)
    return list(found.values())


def _below(folder: Path, of_sweep: bool) -> Iterator[Path]:
    """Yield run folders. The folder of a sweep's run may be empty, if the run failed early."""
    with os.scandir(folder) as entries:
        contents = {entry.name: entry for entry in entries}
    if of_sweep or "config.json" in contents or ".hydra" in contents or "metrics.json" in contents:
        yield folder
        return
    inside = [name for name, entry in contents.items() if not name.startswith(".") and entry.is_dir()]
    runs = list(read_index(folder)["runs"])
    position = {name: number for number, name in enumerate(runs)}
    for name in sorted(inside, key=lambda name: (position.get(name, -1), int(name) if name.isdigit() else -1, name)):
        yield from _below(folder / name, name in position)


def read_run(folder: Path) -> FoundRun:
    """Return the contents of a run folder. Missing and unreadable files raise no error."""
    configuration = _read_config_json(folder) or _read_hydra_files(folder)
    problem, metrics = None, None
    failure = _text(folder / FAILED).partition("\n")[0] or None
    try:
        metrics = json.loads((folder / "metrics.json").read_bytes())
        if not isinstance(metrics, dict):
            problem, metrics = "metrics.json was written by another program", None
    except FileNotFoundError:
        problem = failure or "no metrics.json: the run ended during its first task"
    except (OSError, ValueError) as error:
        problem = f"metrics.json cannot be read: {error}"
    if problem is None and not configuration["config"]:
        problem, metrics = "no config.json can be read, so the configuration is unknown", None
    return FoundRun(folder=folder, metrics=metrics, problem=problem, failure=failure, **configuration)


def _read_config_json(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of a run from config.json, None if it cannot be read."""
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


def _read_hydra_files(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run from ``.hydra``, for runs of a version without config.json."""
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
    """Parse yaml written by Hydra to dotted keys and values. Items of a top-level list have their index as key.

    Blocks are parsed separately and cached, because the files of a sweep's runs are almost equal.
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
    except Exception:  # not a yaml file
        return ()
    if isinstance(value, list):
        return tuple(("-", item) for item in value)
    return tuple(leaves(value)) if isinstance(value, dict) else ()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
