"""Name the benchmark, method and setup of runs after the options whose values differ between the runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from clbench.config.arguments import as_typed
from clbench.config.hashing import HOW_DATA_IS_READ
from clbench.config.options import ELSEWHERE, OPTIONS
from clbench.runs.find import FoundRun

GROUPS = ("strategy", "data", "scenario", "net", "optimizer", "scheduler", "trainer")
REFERENCES = ("joint_from_scratch", "joint", "independent")
"""Strategies with access to more data or nets. Intransigence is relative to the first one with results."""

BASELINE_LABELS = {"finetune": "fine-tuning", "joint": "joint training", "joint_from_scratch": "joint from scratch"}
"""Strategies that others are compared with -> their names in text."""


def name_runs(runs: Sequence[FoundRun]) -> list[dict[str, Any]]:
    """Return ``benchmark``, ``method``, ``setup`` (method and lam), ``strategy`` and the strategy's options of each run.

    Runs of the same benchmark and setup have equal configurations except for the seed.

    A group (``data=split_mnist``) is named by its choice. An option inside a group is part of the name only if it differs
    between runs of the same choice, because ``strategy.damping`` does not distinguish EWC from SI. The name of a method
    contains ``strategy.damping`` as ``damping``.

    If runs of a benchmark have different data fingerprints, its name contains the fingerprint, so that runs on different data
    are not averaged. Runs whose data depends on the seed, and runs of earlier versions, keep the name without it.
    """
    keys = [_identifying_options(run) for run in runs]
    varied = _varied(runs, keys)
    several = {group for group in GROUPS if len({run.choices.get(group) for run in runs if run.config}) > 1}
    names = [_name(run, identifying, varied, several) for run, identifying in zip(runs, keys, strict=True)]
    _mark_other_data(runs, names)
    return [
        {key: printable(value) if isinstance(value, str) else value for key, value in name.items()} for name in names
    ]


def format_value(value: Any) -> str:
    """Format a value as a user types it, a number in its shortest exact form: 1e5 for 100000 and 100000.0, null for None.

    Values that differ have different forms.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or float(value) != value
    ):
        return as_typed(value)
    value = float(value)
    digits = next(n for n in range(17) if float(f"{value:.{n}e}") == value)
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    plain, short = repr(value).removesuffix(".0"), f"{mantissa}e{int(exponent)}"
    return short if "e" in plain or (len(short) < len(plain) and abs(value) >= 1) else plain


def printable(text: str) -> str:
    r"""Return ``text`` in one line, with escapes for characters that cannot be printed.

    >>> print(printable("two\nlines"))
    two\nlines
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def options_of(run: FoundRun) -> dict[str, Any]:
    """Return the top-level options of the run's strategy with their values; ``samples=null`` becomes "all"."""
    return {name: "all" if name == "samples" and run.config[name] is None else run.config[name] for name in run.options}


def _identifying_options(run: FoundRun) -> dict[str, Any]:
    """Return the options that can distinguish the run from others, except for the seed."""
    if not run.config:
        return {}
    has = options_of(run)
    kept = {
        key: value
        for key, value in run.config.items()
        if key.split(".")[0] not in ("seed", "default_fisher", *ELSEWHERE)  # fisher has the value in effect
        and key not in (*HOW_DATA_IS_READ, *run.derived)
        and (key not in OPTIONS or key in has)
    }
    return {**kept, **has}


def _mark_other_data(runs: Sequence[FoundRun], names: Sequence[dict[str, Any]]) -> None:
    """Add the data fingerprint to the names of a benchmark whose runs have several."""
    found: dict[Any, dict[int, str]] = defaultdict(dict)
    for position, (run, name) in enumerate(zip(runs, names, strict=True)):
        data = (run.metrics or {}).get("data")
        prints = data.get("fingerprint") if isinstance(data, dict) and not data.get("source_depends_on_seed") else None
        if isinstance(prints, dict):
            found[name["benchmark"]][position] = "-".join(map(str, prints.values()))
    for prints in found.values():
        for position, text in prints.items() if len(set(prints.values())) > 1 else ():
            names[position]["benchmark"] = f"{names[position]['benchmark']}, data.fingerprint={text}"


def _comparison(run: FoundRun, key: str) -> tuple[str, Any, str]:
    """Return the group, choice and key within which values are compared: runs with the same choice of the group."""
    group = "strategy" if key in OPTIONS else key.split(".")[0]
    return (group, run.choices.get(group), key) if group in GROUPS else ("", None, key)


def _varied(runs: Sequence[FoundRun], keys: Sequence[dict[str, Any]]) -> set[tuple[str, Any, str]]:
    """Return the keys with several values, and those that only some of the comparable runs have."""
    values: dict[tuple[str, Any, str], set[Any]] = defaultdict(set)
    counts: Counter[tuple[str, Any, str]] = Counter()
    comparable: Counter[tuple[str, Any]] = Counter()
    for run, identifying in zip(runs, keys, strict=True):
        if identifying:
            comparable.update([("", None), *((group, run.choices.get(group)) for group in GROUPS)])
        for key, value in identifying.items():
            compared = _comparison(run, key)
            values[compared].add(value)
            counts[compared] += 1
    return {key for key, seen in values.items() if len(seen) > 1 or counts[key] < comparable[key[:2]]}


def _name(
    run: FoundRun, identifying: dict[str, Any], varied: set[tuple[str, Any, str]], several: set[str]
) -> dict[str, Any]:
    if not identifying:
        return {**dict.fromkeys(("benchmark", "method", "setup", "strategy", *OPTIONS)), "lam": math.nan, "options": []}
    options = options_of(run)
    changed = [key for key in identifying if _comparison(run, key) in varied and key != "lam"]
    of_strategy = [key for key in changed if _comparison(run, key)[0] == "strategy"]
    other = [key for key in changed if key not in of_strategy]
    groups = [
        f"{group}={run.choices.get(group)}" for group in ("optimizer", "scheduler", "trainer") if group in several
    ]
    base = [str(run.choices.get("data")), f"{run.choices.get('scenario')}-incremental", str(run.choices.get("net"))]
    if identifying.get("eval_on") == "train" and "eval_on" not in other:
        base.append("evaluated on training examples")
    values = [f"{key.removeprefix('strategy.')}={format_value(identifying[key])}" for key in of_strategy]
    method = " ".join([str(run.choices.get("strategy")), *values])
    lam = options.get("lam")
    if isinstance(lam, str):  # a list with one strength per task has no place on an axis
        method, lam = f"{method} lam={lam.replace(' ', '')}", None
    return {
        "benchmark": ", ".join([*base, *groups, *(f"{key}={format_value(identifying[key])}" for key in other)]),
        "method": method,
        "setup": method if lam is None else f"{method} lam={format_value(float(lam))}",
        "strategy": run.choices.get("strategy"),
        **{name: options.get(name) for name in OPTIONS},
        "lam": math.nan if lam is None else float(lam),
        "options": list(options),
    }
