"""Check that the parts of a study agree with each other."""

from __future__ import annotations

from difflib import get_close_matches

from clbench.errors import ConfigError
from clbench.metrics.quality import QUALITIES
from clbench.metrics.registry import BY_KEY
from clbench.runs.json_files import metrics_shape
from clbench.study.definition import Claim, Row, Study
from clbench.study.kinds import is_number

COLUMNS = ("method", "options", "runs", "seconds_per_run")
"""Columns of the table before those of the metrics."""


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


def check_study(study: Study) -> None:
    """Raise ConfigError if parts of a study contradict each other, or name what does not exist."""
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
        if not all(map(is_number, row.grid.get(key, (None,)))):
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
