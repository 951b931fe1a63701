"""Parse protocols/NAME.yaml into a Protocol. Errors name the mistake."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from clbench.errors import ConfigError
from reproduction.protocol import Claim, Full, Protocol, Published, Quick, Row, Selection

T = TypeVar("T")

FOLDER = Path(__file__).with_name("protocols")
"""Folder with one yaml per study. It is not in conf/, where Hydra would offer the files as options of a run."""


def names() -> list[str]:
    """Return the names of all studies."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find_names(name: str) -> list[str]:
    """Return the study of that name, or all studies whose names begin with it, such as ``nccl``."""
    return [name] if name in names() else [n for n in names() if n.startswith(f"{name}_")] or [name]


def load(name: str) -> Protocol:
    """Return the protocol ``name``.

    Raises:
        ConfigError: The protocol does not exist, or its yaml is not valid.
    """
    if name not in names():
        raise ConfigError(f"NAME={name}: expected a study. Try one of {', '.join(names())}.")
    content: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    return parsed(name, content)


def parsed(name: str, content: dict[str, Any]) -> Protocol:
    """Return the protocol from the content of a yaml, see ``load``."""
    content = {"claims": [], **content, "name": name}
    for key, make in (("rows", _row), ("claims", lambda c: _made(Claim, c, f"{name}: claim"))):
        content[key] = tuple(make(part) for part in content.get(key, ()))
    content["quick"] = _made(Quick, content.get("quick") or {}, f"{name}: quick")
    if content.get("full") is not None:
        content["full"] = _made(Full, content["full"], f"{name}: full")
    protocol = _made(Protocol, content, name)
    rows = tuple(_with_seeds(row, protocol.seeds) for row in protocol.rows)
    protocol = replace(protocol, rows=rows)
    rows = tuple(_like(protocol, row) for row in rows)
    protocol = replace(protocol, rows=rows)
    for row in rows:
        _check(protocol, row)
    for claim in protocol.claims:
        _check_claim(protocol, claim)
    if protocol.reduced and protocol.full is None:
        raise ConfigError(f"{name}: expected full together with reduced. Add full, the form without reduced.")
    return protocol


def _row(content: dict[str, Any]) -> Row:
    where = f"row {content.get('name')}"
    content = dict(content)
    content["select"] = tuple(_made(Selection, s, f"{where}: select") for s in content.get("select", ()))
    published = content.get("published", {})
    content["published"] = {metric: _published(number, f"{where}: {metric}") for metric, number in published.items()}
    return _made(Row, content, where)


def _published(content: dict[str, Any], where: str) -> Published:
    content = dict(content)
    if "sd" in content:
        content["se"] = content.pop("sd") / content["n"] ** 0.5
    number = _made(Published, content, where)
    if (number.n == 1) != (number.se is None):
        raise ConfigError(f"{where}: expected n: 1, or n > 1 with se (or sd), for a published number.")
    return number


def _made(kind: type[T], content: dict[str, Any], where: str) -> T:
    """Return an object of ``kind`` with lists as tuples. Errors name a missing or unknown key."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}  # type: ignore[arg-type]
    if unknown := sorted(content.keys() - known):
        raise ConfigError(f"{where}: unknown key {unknown[0]}. Use {', '.join(sorted(known))}.")
    if missing := sorted(needed - content.keys()):
        raise ConfigError(f"{where}: missing key {missing[0]}.")
    return kind(**{key: _tuples(value) for key, value in content.items()})


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def _with_seeds(row: Row, seeds: tuple[int, ...]) -> Row:
    mine = row.seeds or seeds
    return replace(row, seeds=mine, select=tuple(replace(s, seeds=s.seeds or mine) for s in row.select))


def _like(protocol: Protocol, row: Row) -> Row:
    """Return ``row`` with the grid and trial runs of the row that it is like."""
    if row.like is None:
        return row
    other = protocol.row(row.like)
    if row.grid or row.select or not other.grid:
        raise ConfigError(
            f"{protocol.name}: row {row.name} is like {row.like}: expected a grid in that row and none in this one."
        )
    return replace(row, grid=other.grid, select=other.select, tuned=other.overrides)


def _check(protocol: Protocol, row: Row) -> None:
    where = f"{protocol.name}: row {row.name}"
    if bool(row.grid) != bool(row.select):
        raise ConfigError(f"{where}: expected grid and select together.")
    for metric in (*row.published, *row.curve):
        if metric not in protocol.metrics:
            raise ConfigError(f"{where}: unknown metric {metric}. Use one of {', '.join(protocol.metrics)}.")
    for key in (key for s in row.select for key in s.extend):
        if key not in row.grid:
            raise ConfigError(f"{where}: extend {key}: expected a key of the grid.")
    if row.select and row.select[0].final:
        raise ConfigError(f"{where}: final is not allowed in the first rule, which uses the seeds of the row.")
    for metric, points in row.curve.items():
        if len(row.grid) != 1 or not all(isinstance(point, tuple) and len(point) == 2 for point in points):
            raise ConfigError(
                f"{where}: curve of {metric}: expected pairs of a value of the single grid key and a number."
            )
    if row.baseline is not None:
        protocol.row(row.baseline)


def _check_claim(protocol: Protocol, claim: Claim) -> None:
    protocol.row(claim.row)
    if claim.metric not in protocol.metrics:
        raise ConfigError(
            f"{protocol.name}: claim on unknown metric {claim.metric}. Use one of {', '.join(protocol.metrics)}."
        )
    if claim.other is not None:
        protocol.row(claim.other)
        if (claim.share_of is None) != (claim.at_most is None):
            raise ConfigError(f"{protocol.name}: expected share_of and at_most together in a claim.")
    elif claim.reaches is None or (claim.on_at_least is None and claim.on_at_most is None):
        raise ConfigError(
            f"{protocol.name}: expected beats, share_of with at_most, or reaches with on_at_least or on_at_most in a claim."
        )
