"""The forms of a study: the default form, the published form (``--full``) and the quick form (``--quick``)."""

from __future__ import annotations

from dataclasses import replace

from clbench.errors import ConfigError
from clbench.study.definition import Study


def usual(study: Study) -> Study:
    """Return the default form, with ``reduced`` if it is defined."""
    if not study.reduced:
        return study
    rows = tuple(
        replace(
            row,
            overrides=(*row.overrides, *study.reduced),
            tuned=(*row.tuned, *study.reduced) if row.tuned else (),
            published={},
            curve={},
        )
        for row in study.rows
    )
    return replace(study, rows=rows)


def full(study: Study) -> Study:
    """Return the published form.

    Raises:
        ConfigError: The study has a single form.
    """
    if study.full is None:
        raise ConfigError(f"--full: {study.name} has a single form. Leave --full out.")
    rows = []
    for row in study.rows:
        grid = {key: tuple(study.full.grid.get(key, values)) for key, values in row.grid.items()}
        seeds = study.full.seeds or row.seeds
        select = tuple(
            replace(s, seeds=s.seeds if s.overrides else seeds, extend={} if grid != row.grid else s.extend, final=())
            for s in row.select
        )
        rows.append(replace(row, seeds=seeds, grid=grid, select=select))
    return replace(study, name=f"{study.name}-full", rows=tuple(rows), seconds=study.full.seconds)


def quick(study: Study) -> Study:
    """Return the quick form, which shows that every step runs. Its numbers mean nothing."""
    cut = study.quick
    rows = []
    for row in study.rows:
        if cut.rows and row.name not in cut.rows:
            continue
        grid = {key: (values[0], values[-1]) if len(values) > 1 else values for key, values in row.grid.items()}
        select = tuple(replace(s, seeds=cut.seeds, extend={}, final=()) for s in row.select)
        rows.append(
            replace(
                row,
                overrides=(*row.overrides, *cut.overrides),
                tuned=(*row.tuned, *cut.overrides) if row.tuned else (),
                seeds=cut.seeds,
                grid=grid,
                select=select,
                curve={},
            )
        )
    kept = {row.name for row in rows}
    claims = tuple(c for c in study.claims if c.row in kept and (c.other is None or c.other in kept))
    return replace(study, name=f"{study.name}-quick", rows=tuple(rows), claims=claims)
