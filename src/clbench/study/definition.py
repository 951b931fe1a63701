"""Data classes of a study: its runs and the published numbers with which they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        on: Data on which ``by`` is measured, ``validation`` or ``test``.
        seeds: Seeds of the trial runs, those of the row if empty.
        overrides: Overrides of the trial runs only, such as other tasks or a validation share.
        extend: Factor per grid key, by which the grid is extended if the best value is at its edge. By default, the grid of
            lam is extended by the ratio of its last two values.
        final: Seeds of the runs at the chosen point, those of the row if empty. Not allowed in the first rule.
    """

    by: str
    on: str = "validation"
    seeds: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()
    extend: Mapping[str, float] | None = None
    final: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Dotted key of metrics.json on the data of the rule."""
        return f"validation.{self.by}" if self.on == "validation" else self.by


@dataclass(frozen=True)
class Row:
    """Row of a table: a configuration, or a grid from which a configuration is chosen.

    Attributes:
        name: Name of the row.
        overrides: Overrides after ``python -m clbench.train``, without the seed.
        seeds: Seeds of the final runs, those of the study if empty.
        grid: Values per key. The points are their product.
        select: Rules that choose a point, those of the study if empty. The first one is compared with published numbers, the
            others are only reported.
        published: Published number per metric. A bare number is that of a single run.
        curve: Published points (value of the single grid key, metric) per metric, read from a figure. They are only drawn.
        like: Another row, whose chosen point this row uses instead of a grid.
        tuned: Overrides of the trial runs, those of the row if empty.
        baseline: Another row, drawn as a line in the figure of this row's grid.
        findings: Explanation of a difference, and other findings.
        part: Part of the table in which the row is, empty in a table without parts. In a yaml, a row has ``parts`` instead,
            by default all of the study, and is repeated in each of them.
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
    part: str = ""


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

    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1)
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Full:
    """Published form (``--full``) of a study whose default form is smaller.

    Attributes:
        seconds: Seconds of one run on one core, None if unknown.
        seeds: Seeds of all rows, and of the trial runs of published rules. Rules with overrides are not published.
        grid: Values per key, for every row with the key in its grid. A changed grid is not extended.
    """

    seconds: float | None = None
    seeds: tuple[int, ...] = ()
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Definition of a study.

    Attributes:
        name: Name of the yaml.
        title: Title.
        seeds: Seeds of the rows without seeds.
        rows: Rows.
        claims: Claims.
        metrics: Dotted key of metrics.json per name. A number in a key is a position in a list. The yaml may have a list of
            keys instead, which are their own names.
        select: Rules of the rows with a grid and without rules.
        source, text: Publication and description.
        seconds: Seconds of one run on one core, for the estimate of ``--list``, None if unknown.
        quick: Quick form.
        reduced: Overrides that make every run of the default form affordable. Only the form without them is compared with
            published numbers.
        full: Published form, without ``reduced``.
        parts: Overrides of each part of the table. The rows are repeated in every part, with its name before theirs.
        own: In a benchmark, the values of the options that a strategy of the user gets, of those options that it has.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=lambda: {key: key for key in ("average_accuracy", "forgetting")})
    select: tuple[Selection, ...] = ()
    source: str = ""
    text: str = ""
    seconds: float | None = None
    quick: Quick = Quick()
    reduced: tuple[str, ...] = ()
    full: Full | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """Return the row of that name.

        Raises:
            ConfigError: There is no such row.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"{self.name}: unknown row {name}. Use one of {', '.join(row.name for row in self.rows)}.")
