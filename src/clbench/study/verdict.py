"""Means, standard errors, and agreement with published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, isnan, sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from clbench.metrics.interval import half_width
from clbench.study.definition import Claim, Published

MATCH, DIFFERS, UNDECIDED = "match", "differs", "undecided"


class Summary(NamedTuple):
    """Mean, sample standard deviation (n - 1) and number of runs. The deviation of one run is nan."""

    mean: float
    sd: float
    n: int

    @property
    def se(self) -> float:
        """Standard error of the mean."""
        return self.sd / sqrt(self.n)

    @property
    def interval(self) -> float:
        """Half-width of the 95 % Student t interval of the mean."""
        return float(half_width(self.sd, self.n))


class Comparison(NamedTuple):
    """Our value minus the published one, the largest difference that matches, and the verdict."""

    difference: float
    tolerance: float
    verdict: str


def summary(values: Sequence[float]) -> Summary:
    """Return the summary of the values of all seeds."""
    return Summary(fmean(values), stdev(values) if len(values) > 1 else float("nan"), len(values))


def compare(ours: Summary, theirs: Published) -> Comparison:
    """Return the agreement with a published number.

    A published mean matches if |difference| <= 2 sqrt(se_ours^2 + se_theirs^2). A published single run matches if it is within
    our mean +- 2 sd. With a single run of ours, the verdict is undecided.
    """
    difference = ours.mean - theirs.value
    if ours.n < 2:
        return Comparison(difference, float("nan"), UNDECIDED)
    tolerance = 2 * ours.sd if theirs.se is None else 2 * hypot(ours.se, theirs.se)
    return Comparison(difference, tolerance, MATCH if abs(difference) <= tolerance else DIFFERS)


def reached(claim: Claim, values: Sequence[float], sign: int = 1) -> tuple[bool, str]:
    """Return whether the number of seeds that reach the claim's value is in its bounds, and the number as text.

    Args:
        claim: Claim with ``reaches``.
        values: Value of each seed.
        sign: -1 if lower values are better, so that a lower value reaches that of the claim.
    """
    assert claim.reaches is not None
    count = sum(sign * value >= sign * claim.reaches for value in values)
    enough = claim.on_at_least is None or count >= claim.on_at_least
    few = claim.on_at_most is None or count <= claim.on_at_most
    return enough and few, f"{count} of {len(values)} seeds"


def share(claim: Claim, values: Sequence[float], others: Sequence[float]) -> tuple[bool, str]:
    """Return whether the mean over seeds of value / other is at most that of the claim, and the mean as text."""
    assert claim.at_most is not None
    if 0 in others:
        return False, f"undefined: {claim.share_of} is 0 for a seed"
    ours = summary([value / other for value, other in zip(values, others, strict=True)])
    error = "" if ours.n < 2 else f", standard error {ours.se:.4f}"
    return ours.mean <= claim.at_most, f"{ours.mean:.4f}{error}"


def better(claim: Claim, values: Sequence[float], others: Sequence[float]) -> tuple[bool, str]:
    """Return whether enough seeds have a larger value than the same seed of the other row, and their number as text."""
    assert claim.on_at_least is not None
    count = sum(value > other for value, other in zip(values, others, strict=True))
    return count >= claim.on_at_least, f"{count} of {len(values)} seeds"


def beats(claim: Claim, ours: Summary, other: Summary) -> tuple[bool, str]:
    """Return whether ours - other >= claim.standard_errors * sqrt(se_ours^2 + se_other^2), and the numbers as text."""
    difference, se = ours.mean - other.mean, hypot(ours.se, other.se)
    measured = f"{difference:+.4f}" + ("" if isnan(se) else f", standard error {se:.4f}")
    return difference > 0 and difference >= claim.standard_errors * se, measured
