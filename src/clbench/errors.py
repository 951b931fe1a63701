"""Errors of the user: one line with the value, the rule and the remedy."""

from __future__ import annotations

from typing import Any


class ConfigError(ValueError):
    """The requested run is impossible. Raised before training and shown without a traceback.

    Attributes:
        group: The part of the configuration, ``strategy`` or ``data``, whose Python arguments are named in the text, or ``""``.
            ``clbench.config.arguments`` replaces these names by the options of the command line.
    """

    group = ""


class StrategyError(ConfigError):
    """Invalid argument of a strategy, or a run that does not fit it. The text names Python arguments."""

    group = "strategy"


class DataError(ConfigError):
    """Invalid argument of a sequence or a split, or unusable data. The text names Python arguments."""

    group = "data"


class ScenarioError(ConfigError):
    """An argument of a scenario; the text names Python arguments."""

    group = "scenario"


class LearnerError(ConfigError):
    """An argument of a Learner; the text names Python arguments."""

    group = "learner"


class OtherRun(ConfigError):
    """The folder contains the results of another configuration, or of other data."""


class SweepFailed(ConfigError):
    """Some runs of a sweep have failed. The others are complete."""


class Unstable(RuntimeError):
    """Training produced non-finite weights. Shown without a traceback. Finished tasks are kept."""

    group = "strategy"


def expected(name: str, value: Any, rule: str, hint: str = "") -> str:
    """Return the text of an error: ``name=value: expected rule, got value. hint``.

    Example:
        >>> expected("lam", -1, "a finite number >= 0", "Try 100.")
        'lam=-1: expected a finite number >= 0, got -1. Try 100.'
    """
    return f"{name}={value}: expected {rule}, got {value!r}.{hint and ' ' + hint}"
