"""Protocol: what is run and what it is compared with. Nothing here knows any single reproduction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clbench.errors import ConfigError


@dataclass(frozen=True)
class Published:
    """A published number: the mean of ``n`` runs with its standard error, or a single run (``n: 1``).

    Attributes:
        value: as a fraction where it is an accuracy.
        n: number of runs.
        se: standard error of the mean; in yaml ``sd`` may be given instead.
    """

    value: float
    n: int
    se: float | None = None


@dataclass(frozen=True)
class Selection:
    """How a point of a row's grid is chosen.

    Attributes:
        by: dotted key of metrics.json whose mean over seeds is largest.
        seeds: of the trial runs; those of the row if empty.
        overrides: of the trial runs only, such as other tasks or a validation share.
        extend: grid key -> factor by which the grid is extended where the best value is at its edge.
        final: seeds of the runs at the chosen point; those of the row if empty. Only for a rule that is not the first.
    """

    by: str
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    extend: Mapping[str, float] = field(default_factory=dict)
    final: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of a published table: a configuration, or a grid of them from which one is chosen.

    Attributes:
        name: of the row.
        overrides: what a user types after ``python -m clbench.train``, without the seed.
        seeds: of the final runs; those of the protocol if empty.
        grid: key -> values; their product are the points.
        select: rules that choose a point; the first is the one that is compared, the others are reported beside it.
        published: metric -> number.
        curve: metric -> published points (value of the one grid key, metric), read from a figure: drawn, not judged.
        like: another row, whose chosen point this row is run at; it has no grid of its own.
        tuned: overrides of the trial runs; those of the row itself if empty.
        baseline: another row, drawn as a line beside this row's grid.
        findings: why it differs, or what else was found.
    """

    name: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    select: tuple[Selection, ...] = ()
    published: Mapping[str, Published] = field(default_factory=dict)
    curve: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    like: str | None = None
    tuned: tuple[str, ...] = ()
    baseline: str | None = None
    findings: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement that is not one number: "on at least 18 of 20 seeds", or "beats fine-tuning by 2 standard errors".

    Attributes:
        text: for people.
        row, metric: what is looked at.
        reaches: with ``on_at_least`` or ``on_at_most``: a seed counts if its value is at least this.
        on_at_least, on_at_most: bounds on the number of such seeds.
        beats: another row; the difference of the means is at least ``standard_errors`` of its standard error.
        standard_errors: see ``beats``.
        share_of: another row, with ``at_most``: the value divided by that row's of the same seed, averaged over seeds.
        at_most: see ``share_of``.
    """

    text: str
    row: str
    metric: str
    reaches: float | None = None
    on_at_least: int | None = None
    on_at_most: int | None = None
    beats: str | None = None
    standard_errors: float = 2.0
    share_of: str | None = None
    at_most: float | None = None

    @property
    def other(self) -> str | None:
        """The row it compares with."""
        return self.beats or self.share_of


@dataclass(frozen=True)
class Quick:
    """The cut-down form: fewer seeds, the ends of every grid, and overrides that make a run short.

    Attributes:
        overrides: added to every run.
        seeds: instead of all others.
        rows: names of the rows that are kept; all if empty.
    """

    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1)
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Full:
    """The form as published (``--full``), where what runs by default is smaller.

    Attributes:
        seconds: of one run on one core.
        seeds: of all rows, and of the trial runs that choose as published does (those with overrides of their own are ours).
        grid: key -> values, in every row that has the key in its grid; then no grid is extended.
    """

    seconds: float
    seeds: tuple[int, ...] = ()
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """One reproduction.

    Attributes:
        name: of its yaml.
        title, source, text: for people: what it is, where it was published, what was done and claimed.
        seconds: of one run on one core, for the estimate of ``--list``.
        metrics: name -> dotted key of metrics.json; a number in it is a position in a list.
        seeds: of rows that give none.
        rows, claims, quick: what is run and judged.
        reduced: overrides of every run that make it affordable; published numbers are of the form without them, so they are
            compared in that form only.
        full: that form.
    """

    name: str
    title: str
    source: str
    text: str
    seconds: float
    metrics: Mapping[str, str]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    quick: Quick
    claims: tuple[Claim, ...] = ()
    reduced: tuple[str, ...] = ()
    full: Full | None = None

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"{self.name} has no row {name}: its rows are {', '.join(row.name for row in self.rows)}")


def usual(protocol: Protocol) -> Protocol:
    """The form that is run by default: with what reduces it, where anything does."""
    if not protocol.reduced:
        return protocol
    rows = tuple(
        replace(
            row,
            overrides=(*row.overrides, *protocol.reduced),
            tuned=(*row.tuned, *protocol.reduced) if row.tuned else (),
            published={},
            curve={},
        )
        for row in protocol.rows
    )
    return replace(protocol, rows=rows)


def full(protocol: Protocol) -> Protocol:
    """The form as published.

    Raises:
        ConfigError: it is the one that runs anyway.
    """
    if protocol.full is None:
        raise ConfigError(f"{protocol.name} --full: this reproduction has one form only, leave --full out")
    rows = []
    for row in protocol.rows:
        grid = {key: tuple(protocol.full.grid.get(key, values)) for key, values in row.grid.items()}
        seeds = protocol.full.seeds or row.seeds
        select = tuple(
            replace(s, seeds=s.seeds if s.overrides else seeds, extend={} if grid != row.grid else s.extend, final=())
            for s in row.select
        )
        rows.append(replace(row, seeds=seeds, grid=grid, select=select))
    return replace(protocol, name=f"{protocol.name}-full", rows=tuple(rows), seconds=protocol.full.seconds)


def quick(protocol: Protocol) -> Protocol:
    """Its cut-down form: it shows that everything runs; the numbers mean nothing."""
    cut = protocol.quick
    rows = []
    for row in protocol.rows:
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
    claims = tuple(c for c in protocol.claims if c.row in kept and (c.other is None or c.other in kept))
    return replace(protocol, name=f"{protocol.name}-quick", rows=tuple(rows), claims=claims)
