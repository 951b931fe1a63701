"""Read the yaml of a study. Errors name the file, the key and the mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from yaml import YAMLError

from clbench.config.options import conf_dir
from clbench.errors import ConfigError
from clbench.study.consistency import check_study
from clbench.study.definition import Claim, Full, Published, Quick, Row, Selection, Study
from clbench.study.kinds import TYPES, are_parts, is_number, tuples

T = TypeVar("T")


def names() -> list[str]:
    """Return the names of the studies of this project, the files of conf/study."""
    return sorted(file.stem for file in (conf_dir() / "study").glob("*.yaml"))


def load(name: str) -> Study:
    """Return the study of that name, or of that yaml file.

    Raises:
        ConfigError: There is no such study, or its yaml is not valid.
    """
    file = conf_dir() / "study" / f"{name}.yaml" if name in names() else Path(name)
    if not file.is_file():
        close = get_close_matches(name, names(), 1)
        hint = f"Did you mean {close[0]}?" if close else f"Try one of {', '.join(names())}."
        raise ConfigError(f"{name}: expected the name of a study or a yaml file. {hint}")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: expected a yaml file, got: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: expected the keys of a study, such as title, seeds and rows.")
    return parsed(file.stem, content)


def parsed(name: str, content: Mapping[str, Any]) -> Study:
    """Return the study from the content of a yaml, see ``load``."""
    if "name" in content:
        raise ConfigError(f"{name}: unknown key name. The name of a study is that of its file.")
    content = {**content, "name": name}
    if isinstance(metrics := content.get("metrics"), list):
        content["metrics"] = {str(key): key for key in metrics}
    for key, kind in (("quick", Quick), ("full", Full)):
        if key in content:
            content[key] = _made(kind, content[key], f"{name}: {key}")
    content["select"] = _rules(content.get("select", ()), name)
    rows = [row for each in _listed(content, "rows", name) for row in _in_parts(each, content.get("parts"), name)]
    content["rows"] = tuple(_row(row, name) for row in rows)
    content["claims"] = tuple(_made(Claim, part, f"{name}: claim") for part in _listed(content, "claims", name))
    study = _made(Study, content, name)
    if not study.rows or not study.seeds:
        raise ConfigError(f"{name}: expected at least one row and one seed.")
    if len({row.name for row in study.rows}) < len(study.rows):
        raise ConfigError(f"{name}: expected different names of rows.")
    study = replace(study, rows=tuple(filled(row, study) for row in study.rows))
    study = replace(study, rows=tuple(_like(study, row) for row in study.rows))
    check_study(study)
    return study


def _in_parts(row: Any, parts: Any, name: str) -> list[Any]:
    """Return ``row`` once per part of the study, with the overrides of the part. It refers to other rows of the same part."""
    if not isinstance(row, dict):
        return [row]
    where = f"{name}: row {row.get('name')}"
    if "part" in row or (parts is None and "parts" in row):
        raise ConfigError(
            f"{where}: unknown key part{'' if 'part' in row else 's'}. Add parts to the study and to the row."
        )
    if parts is None:
        return [row]
    if not are_parts(tuples(parts)) or not parts:
        raise ConfigError(f"{name}: parts: expected a list of overrides per part, got {parts}.")
    chosen = row.get("parts", list(parts))
    if not isinstance(chosen, list) or not chosen or not set(chosen) <= set(parts):
        raise ConfigError(f"{where}: parts: expected a list of {', '.join(parts)}, got {chosen}.")
    repeated = []
    for part in chosen:
        named = {key: f"{part}, {row[key]}" for key in ("name", "like", "baseline") if row.get(key) is not None}
        own = row.get("overrides", [])
        overrides = [*parts[part], *own] if isinstance(own, list) else own
        repeated.append({key: value for key, value in row.items() if key != "parts"} | named)
        repeated[-1] |= {"overrides": overrides, "part": part}
    return repeated


def _row(content: Any, name: str) -> Row:
    where = f"{name}: row {content.get('name') if isinstance(content, dict) else content}"
    content = dict(_mapping(content, where))
    content["select"] = _rules(content.get("select", ()), where)
    published = _mapping(content.get("published", {}), f"{where}: published")
    content["published"] = {metric: _published(number, f"{where}: {metric}") for metric, number in published.items()}
    return _made(Row, content, where)


def _rules(content: Any, where: str) -> tuple[Selection, ...]:
    """Return the rules of ``select``, which may be a single one."""
    rules = content if isinstance(content, list | tuple) else [content]
    where = f"{where}: select"
    rules = [
        {"on" if k is True else k: v for k, v in _mapping(rule, where).items()} for rule in rules
    ]  # yaml reads on as true
    made = tuple(_made(Selection, rule, where) for rule in rules)
    for rule in made:
        if rule.by.startswith("validation."):
            raise ConfigError(f"{where}: by={rule.by}: expected the key without validation. Write on: validation.")
        if rule.on not in ("validation", "test"):
            raise ConfigError(f"{where}: on={rule.on}: expected validation or test.")
    return made


def _published(content: Any, where: str) -> Published:
    content = {"value": content, "n": 1} if isinstance(content, int | float) else dict(_mapping(content, where))
    deviation = content.pop("sd", None)
    number = _made(Published, content if deviation is None else {**content, "se": deviation}, where)
    if deviation is not None and number.se is not None and "se" not in content:
        number = replace(number, se=number.se / number.n**0.5)
    if (number.n == 1) != (number.se is None) or (number.se or 0) < 0 or (deviation is not None and "se" in content):
        raise ConfigError(f"{where}: expected n: 1, or n > 1 with se (or sd), for a published number.")
    return number


def _made(kind: type[T], content: Any, where: str) -> T:
    """Return an object of ``kind`` with lists as tuples. Errors name a missing or unknown key, or a value of another type."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in _mapping(content, where):
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key}. Use {', '.join(sorted(known))}.")
    for key, f in known.items():
        if key not in content and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{where}: missing key {key}.")
    values = {key: tuples(value) for key, value in content.items()}
    for key, value in values.items():
        fits, expected = TYPES.get(str(known[key].type), (lambda _: True, ""))
        if not fits(value):
            shown = "null" if value is None else content[key]
            raise ConfigError(f"{where}: {key}: expected {expected}, got {shown}.")
    return kind(**values)


def _mapping(content: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected keys with values, got {'nothing' if content is None else content}.")
    return content


def _listed(content: Mapping[str, Any], key: str, name: str) -> list[Any]:
    found = content.get(key, [])
    if not isinstance(found, list):
        raise ConfigError(f"{name}: {key}: expected a list, got {'null' if found is None else found}.")
    return found


def filled(row: Row, study: Study) -> Row:
    """Return ``row`` with the seeds and rules of the study where it has none."""
    seeds, rules = row.seeds or study.seeds, row.select
    if row.grid and not rules:  # a rule of the study also extends the keys of other grids
        rules = tuple(
            replace(rule, extend=rule.extend and {key: f for key, f in rule.extend.items() if key in row.grid})
            for rule in study.select
        )
    filled = (replace(r, seeds=r.seeds or seeds, extend=_factors(row) if r.extend is None else r.extend) for r in rules)
    return replace(row, seeds=seeds, select=tuple(filled))


def _factors(row: Row) -> dict[str, float]:
    """Return the ratio of the last two values of lam, by which its grid is extended unless ``extend`` says otherwise."""
    *_, before, last = (0, *row.grid.get("lam", (0,)))
    return {"lam": last / before} if is_number(before) and is_number(last) and last > before > 0 else {}


def _like(study: Study, row: Row) -> Row:
    """Return ``row`` with the grid and trial runs of the row that it is like."""
    if row.like is None:
        return row
    other = study.row(row.like)
    if row.grid or row.select or not other.grid:
        raise ConfigError(
            f"{study.name}: row {row.name} is like {row.like}: expected a grid in that row and none in this one."
        )
    return replace(row, grid=other.grid, select=other.select, tuned=other.overrides)
