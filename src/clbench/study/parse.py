"""Read the yaml of a study. Errors name the file, the key and the mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from yaml import YAMLError

from clbench.config.options import conf_dir
from clbench.errors import ConfigError
from clbench.metrics.quality import QUALITIES
from clbench.metrics.registry import BY_KEY
from clbench.runs.json_files import metrics_shape
from clbench.study.definition import Claim, Full, Published, Quick, Row, Selection, Study
from clbench.study.plan import text_of

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
    _check_study(study)
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
    if not _are_parts(_tuples(parts)) or not parts:
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
    values = {key: _tuples(value) for key, value in content.items()}
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


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_seeds(value: Any) -> bool:
    return _are(int)(value) and len(set(value)) == len(value) and all(seed >= 0 for seed in value)


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, tuple) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)
    )


def _are_factors(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(_is_number(v) and v > 1 for v in value.values()))


def _are_grids(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, tuple) and v and len(set(map(text_of, v))) == len(v) for v in value.values()
    )


def _are_parts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_are(str), value.values()))


def _are_curves(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(points, tuple)
        and all(isinstance(point, tuple) and len(point) == 2 and all(map(_is_number, point)) for point in points)
        for points in value.values()
    )


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and _are(str)((*value, *value.values()))


TYPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "int | None": (lambda value: value is None or (_are(int)((value,)) and value >= 0), "a number of seeds"),
    "str | None": (lambda value: value is None or isinstance(value, str), "a text"),
    "int": (lambda value: isinstance(value, int) and value > 0, "a positive number of runs"),
    "float": (_is_number, "a number"),
    "float | None": (lambda value: value is None or _is_number(value), "a number"),
    "tuple[str, ...]": (_are(str), "a list of texts"),
    "Mapping[str, tuple[str, ...]]": (_are_parts, "a list of overrides per part"),
    "tuple[int, ...]": (_are_seeds, "a list of different integers >= 0"),
    "Mapping[str, str]": (_are_metrics, "a list of keys of metrics.json, or name: key"),
    "Mapping[str, float] | None": (_are_factors, "a factor above 1 per key"),
    "Mapping[str, tuple[Any, ...]]": (_are_grids, "a list of different values per key"),
    "Mapping[str, tuple[tuple[float, float], ...]]": (_are_curves, "a list of pairs of numbers per metric"),
}
"""Check and description of a value, by the annotation of its field."""

COLUMNS = ("method", "options", "runs", "seconds_per_run")
"""Columns of the table before those of the metrics."""


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
    return {"lam": last / before} if _is_number(before) and _is_number(last) and last > before > 0 else {}


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


def _check_key(name: str, key: str) -> None:
    """Raise ConfigError unless the first part of a dotted key is one of metrics.json, which has the test data outside."""
    known = {part.removesuffix("?") for quality in QUALITIES.values() for part in metrics_shape(quality)} | {
        *BY_KEY,
        "extra_metrics",
        "net",
    }
    first = key.removeprefix("validation.").partition(".")[0]
    if first not in known:
        close = get_close_matches(first, known, 1)
        hint = f"Did you mean {close[0]}?" if close else "Try average_accuracy."
        raise ConfigError(f"{name}: {key}: expected a key of metrics.json. {hint}")


def _check(study: Study, row: Row) -> None:
    where = f"{study.name}: row {row.name}"
    if not row.name.strip() or len(row.name.splitlines()) > 1:
        raise ConfigError(f"{study.name}: row {row.name!r}: name: expected one line of text.")
    if bool(row.grid) != bool(row.select):
        raise ConfigError(f"{where}: expected grid and select together. A study may have select for all rows.")
    for metric in (*row.published, *row.curve):
        if metric not in study.metrics:
            raise ConfigError(f"{where}: unknown metric {metric}. Use one of {', '.join(study.metrics)}.")
    trials = (override for rule in row.select for override in rule.overrides)
    for override in (*row.overrides, *study.reduced, *study.quick.overrides, *trials, *(f"{key}=" for key in row.grid)):
        if override.lstrip("+~").partition("=")[0] == "seed" or ("=" not in override and override[:1] != "~"):
            raise ConfigError(f"{where}: {override}: expected option=value, and the seeds under seeds.")
    _check_rules(row, where)
    if row.curve and len(row.grid) != 1:
        raise ConfigError(f"{where}: curve: expected a grid of a single key.")
    if row.baseline is not None:
        study.row(row.baseline)


def _check_study(study: Study) -> None:
    if reserved := [metric for metric in study.metrics if metric in COLUMNS]:
        raise ConfigError(
            f"{study.name}: metric {reserved[0]}: the table has a column of this name. Choose another name."
        )
    for key in (*study.metrics.values(), *(rule.by for row in study.rows for rule in row.select)):
        _check_key(study.name, key)
    for row in study.rows:
        _check(study, row)
    for claim in study.claims:
        _check_claim(study, claim)
    _check_forms(study)


def _check_forms(study: Study) -> None:
    for row in study.quick.rows:
        study.row(row)
    if not study.quick.seeds:
        raise ConfigError(f"{study.name}: quick: expected at least one seed.")
    keys = {key for row in study.rows for key in row.grid}
    if unknown := [key for key in (study.full.grid if study.full else ()) if key not in keys]:
        raise ConfigError(f"{study.name}: full: grid: no row has {unknown[0]} in its grid.")
    if study.reduced and study.full is None:
        raise ConfigError(f"{study.name}: expected full together with reduced. Add full, the form without reduced.")


def _check_rules(row: Row, where: str) -> None:
    for key in (key for rule in row.select for key in rule.extend or ()):
        if not all(map(_is_number, row.grid.get(key, (None,)))):
            raise ConfigError(f"{where}: extend {key}: expected a key of the grid with numbers.")
    if row.select and row.select[0].final:
        raise ConfigError(f"{where}: final is not allowed in the first rule, which uses the seeds of the row.")


FORMS = (
    {"beats"},
    {"beats", "on_at_least"},
    {"share_of", "at_most"},
    {"reaches", "on_at_least"},
    {"reaches", "on_at_most"},
    {"reaches", "on_at_least", "on_at_most"},
)
"""Keys of a claim that go together."""


def _check_claim(study: Study, claim: Claim) -> None:
    where = f"{study.name}: claim {claim.text!r}"
    row = study.row(claim.row)
    if claim.metric not in study.metrics:
        raise ConfigError(f"{where}: unknown metric {claim.metric}. Use one of {', '.join(study.metrics)}.")
    given = {
        key
        for key in ("reaches", "on_at_least", "on_at_most", "beats", "share_of", "at_most")
        if getattr(claim, key) is not None
    }
    if given not in FORMS:
        raise ConfigError(
            f"{where}: expected beats (perhaps with on_at_least), share_of with at_most, or reaches with on_at_least or "
            f"on_at_most, got {', '.join(sorted(given)) or 'none of them'}."
        )
    if claim.other is not None:
        other = study.row(claim.other)
        if claim.other == claim.row:
            raise ConfigError(f"{where}: expected another row than {claim.row}.")
        if given == {"beats"} and min(len(row.seeds), len(other.seeds)) < 2:
            raise ConfigError(f"{where}: expected at least two seeds in both rows, for a standard error.")
        if given != {"beats"} and row.seeds != other.seeds:
            raise ConfigError(f"{where}: expected the same seeds in both rows, in the same order.")
    most = max(len(row.seeds), len(study.full.seeds) if study.full else 0)
    if (claim.on_at_least or 0) > most:
        raise ConfigError(f"{where}: on_at_least={claim.on_at_least}: expected at most {most}, the number of seeds.")
