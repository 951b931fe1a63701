"""Find run folders and read their files into plain dictionaries."""

from __future__ import annotations

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
from clbench.runs.json_files import (
    COUNT,
    NUMBER,
    REMEDY,
    TEXT,
    Leaf,
    Shape,
    mismatch,
    read_json,
    read_metrics_of_any_version,
)
from clbench.runs.sweep_index import read_index


def is_lam(value: Any) -> bool:
    """Return whether ``value`` may be lam: a number, one per task, or null."""
    return all(NUMBER.follows(each) for each in (value if isinstance(value, list) else [value]))


CONFIG: Shape = {
    "config": {"seed?": COUNT, "lam?": Leaf("a finite number, null or a list of them", is_lam)},
    "derived": Leaf("names of options", lambda value: isinstance(value, dict) or mismatch(value, [TEXT]) is None),
    "choices": {"strategy": TEXT, "*": Leaf("a text or null", lambda value: isinstance(value, str | None))},
    "options": [TEXT],
    "overrides": [TEXT],
}
"""Shape of config.json. The options of a run of a version without config.json, from ``.hydra``, have the same shape."""


class FoundRun(NamedTuple):
    """Contents of a run folder.

    Attributes:
        folder: The run's folder.
        config: Dotted keys and values (``{"data.tasks": 5}``); empty if the run failed before it wrote them.
        derived: Keys of ``config`` that refer to other keys (``strategy.lam`` to ``lam``).
        choices: Name of the yaml chosen in each group.
        options: Top-level options of the strategy.
        overrides: The overrides of the command.
        metrics: Contents of metrics.json, None if they cannot be read. Their types are those of ``json_files.METRICS``.
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

    A run folder may contain further runs. A folder that cannot be opened is returned as well, because it may be a run.

    Raises:
        ConfigError: A folder does not exist or contains no runs.
    """
    found: dict[Any, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            what = "it is a file" if folder.exists() else "there is no such folder"
            raise ConfigError(
                f"{folder}: expected a folder with runs, but {what}. Try the output_dir of a run or of a sweep."
            )
        below = dict(_below(folder))
        if not below:
            raise ConfigError(
                f"{folder}: expected a folder with runs, found none. clbench train writes config.json and metrics.json to the "
                "folder of a run."
            )
        found |= {place: run for place, run in below.items() if place not in found}
    return list(found.values())


def _below(folder: Path) -> Iterator[tuple[Any, Path]]:
    """Yield an identifier and the path of each run folder at or below ``folder``, once also if links lead to it.

    The folder of a sweep's run may be empty, if the run failed early.
    """
    visited = set()
    stack = [(folder, folder.name in read_index(folder.parent)["runs"])]  # may be deeper than Python's recursion limit
    while stack:
        folder, is_of_sweep = stack.pop()
        try:
            about = folder.stat()
            if (place := (about.st_dev, about.st_ino)) in visited:
                continue
            visited.add(place)
            with os.scandir(folder) as entries:
                contents = {entry.name: entry for entry in entries}
        except OSError:
            yield str(folder), folder
            continue
        if is_of_sweep or not contents.keys().isdisjoint(("config.json", ".hydra", "metrics.json")):
            yield place, folder
        inside = [name for name, entry in contents.items() if not name.startswith(".") and _is_folder(entry)]
        runs = read_index(folder)["runs"] if "sweep.json" in contents else {}
        position = {name: number for number, name in enumerate(runs)}
        inside.sort(key=lambda name: (position.get(name, -1), int(name) if name.isdecimal() else -1, name))
        stack += [(folder / name, name in position) for name in reversed(inside)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or a link to a folder that this user may not enter
        return False


def read_run(folder: Path) -> FoundRun:
    """Return the contents of a run folder. Missing, unreadable and damaged files raise no error but give a ``problem``."""
    configuration, unknown = _read_configuration(folder)
    metrics, problem, failure = None, None, _text(folder / FAILED).partition("\n")[0] or None
    try:
        os.scandir(folder).close()
        metrics = read_metrics_of_any_version(folder)
    except FileNotFoundError:
        problem = failure or "no metrics.json: the run ended during its first task"
    except OSError as error:
        problem = f"the folder cannot be opened: {error.strerror}"
    except ConfigError as error:
        problem = str(error)
    if problem is None and unknown is not None:
        metrics, problem = None, unknown
    return FoundRun(folder=folder, metrics=metrics, problem=problem, failure=failure, **configuration)


def _read_configuration(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return the configuration of a run, or an empty one and the reason why it is unknown."""
    unknown: dict[str, Any] = {"config": {}, "derived": frozenset(), "choices": {}, "options": [], "overrides": []}
    try:
        content = read_json(folder / "config.json", CONFIG)
    except FileNotFoundError:
        content = _read_hydra_files(folder)
        if not content["config"]:
            return unknown, "no config.json can be read, so the configuration is unknown"
        if (wrong := mismatch(content, CONFIG)) is not None:
            return unknown, f".hydra/config.yaml cannot be read: {wrong}. {REMEDY}"
    except ConfigError as error:
        return unknown, str(error)
    found = {key: content[key] for key in unknown} | {"config": dict(leaves(content["config"]))}
    if missing := [name for name in ("seed", *found["options"]) if name not in found["config"]]:
        return unknown, f"config.json cannot be read: config.{missing[0]} is missing. {REMEDY}"
    return found | {"derived": frozenset(found["derived"])}, None


def _read_hydra_files(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run from ``.hydra``, for runs of a version without config.json."""
    hydra = folder / ".hydra"
    config = parse(_text(hydra / "config.yaml"))
    choices = re.search(r"^ +choices:\n((?: {6}.*\n)+)", _text(hydra / "hydra.yaml"), re.MULTILINE)
    refers = {key: value for key, value in config.items() if isinstance(value, str) and "${" in value}
    of_strategy = " ".join(value for key, value in refers.items() if key.startswith("strategy."))
    return {
        "config": config,
        "derived": list(refers),
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
