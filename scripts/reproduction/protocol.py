"""Data classes of a study: its runs and the published numbers with which they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clbench.errors import ConfigError


@dataclass(frozen=True)
class Published:
    """Published number: the mean of ``n`` runs with its standard error, or a single run (``n: 1``).

    Attributes:
        value: Value, a fraction for an accuracy.
        n: Number of runs.
        se: Standard error of the mean. The yaml may have the standard deviation ``sd`` instead.
    """

    value: float
    n: int
    se: float | None = None


@dataclass(frozen=True)
class Selection:
    """Rule that chooses a point of a row's grid.

    Attributes:
        by: Dotted key of metrics.json. The point with the best mean over seeds is chosen.
        seeds: Seeds of the trial runs, those of the row if empty.
        overrides: Overrides of the trial runs only, such as other tasks or a validation share.
        extend: Factor per grid key, by which the grid is extended if the best value is at its edge.
        final: Seeds of the runs at the chosen point, those of the row if empty. Not allowed in the first rule.
    """

    by: str
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    extend: Mapping[str, float] = field(default_factory=dict)
    final: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """Row of a table: a configuration, or a grid from which a configuration is chosen.

    Attributes:
        name: Name of the row.
        overrides: Overrides after ``python -m clbench.train``, without the seed.
        seeds: Seeds of the final runs, those of the protocol if empty.
        grid: Values per key. The points are their product.
        select: Rules that choose a point. The first one is compared with published numbers, the others are only reported.
        published: Published number per metric.
        curve: Published points (value of the single grid key, metric) per metric, read from a figure. They are only drawn.
        like: Another row, whose chosen point this row uses instead of a grid.
        tuned: Overrides of the trial runs, those of the row if empty.
        baseline: Another row, drawn as a line in the figure of this row's grid.
        findings: Explanation of a difference, and other findings.
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
    """Statement that is not a single number: "on at least 18 of 20 seeds", or "beats fine-tuning by 2 standard errors".

    Attributes:
        text: Statement in words.
        row, metric: Row and metric of the claim.
        reaches: Value that a seed must reach to be counted, with ``on_at_least`` or ``on_at_most``.
        on_at_least, on_at_most: Bounds of the number of counted seeds.
        beats: Another row. The improvement over its mean is at least ``standard_errors`` times its standard error. With
            ``on_at_least``, it is the number of seeds with a better value than the same seed of the other row.
        standard_errors: See ``beats``.
        share_of: Another row. The value divided by that of the other row, averaged over seeds, is at most ``at_most``.
        at_most: See ``share_of``.
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
        """Row with which the claim compares."""
        return self.beats or self.share_of


@dataclass(frozen=True)
class Quick:
    """Quick form: fewer seeds, the ends of every grid, and overrides that make runs short.

    Attributes:
        overrides: Overrides that are added to every run.
        seeds: Seeds that replace all others.
        rows: Names of the rows, all if empty.
    """

    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1)
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Full:
    """Published form (``--full``) of a study whose default form is smaller.

    Attributes:
        seconds: Seconds of one run on one core.
        seeds: Seeds of all rows, and of the trial runs of published rules. Rules with overrides are not published.
        grid: Values per key, for every row with the key in its grid. A changed grid is not extended.
    """

    seconds: float
    seeds: tuple[int, ...] = ()
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """Definition of a study.

    Attributes:
        name: Name of the yaml.
        title, source, text: Title, publication and description.
        seconds: Seconds of one run on one core, for the estimate of ``--list``.
        metrics: Dotted key of metrics.json per name. A number in a key is a position in a list.
        seeds: Seeds of the rows without seeds.
        rows, claims, quick: Rows, claims and quick form.
        reduced: Overrides that make every run of the default form affordable. Only the form without them is compared with
            published numbers.
        full: Published form, without ``reduced``.
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
        """Return the row of that name.

        Raises:
            ConfigError: There is no such row.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"{self.name}: unknown row {name}. Use one of {', '.join(row.name for row in self.rows)}.")


def usual(protocol: Protocol) -> Protocol:
    """Return the default form, with ``reduced`` if it is defined."""
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
    """Return the published form.

    Raises:
        ConfigError: The study has a single form.
    """
    if protocol.full is None:
        raise ConfigError(f"--full: {protocol.name} has a single form. Leave --full out.")
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
    """Return the quick form, which shows that every step runs. Its numbers mean nothing."""
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
