"""The error of a wrong input: one line that names the value, the rule and the remedy."""

from __future__ import annotations

from typing import Any


class ConfigError(ValueError):
    """What the user asked for cannot be run; raised before training starts, shown without a traceback.

    Attributes:
        group: where the configuration has the Python arguments that the text names, ``strategy`` or ``data``, and ``""`` if it
            names none. ``clbench.config.arguments`` then puts the keys of the command line in their place.
    """

    group = ""


class StrategyError(ConfigError):
    """An argument of a strategy, or what it needs of the run; the text names Python arguments."""

    group = "strategy"


class DataError(ConfigError):
    """An argument of a sequence or of a split, or data that cannot be used; the text names Python arguments."""

    group = "data"


class ScenarioError(ConfigError):
    """An argument of a scenario; the text names Python arguments."""

    group = "scenario"


class LearnerError(ConfigError):
    """An argument of a Learner; the text names Python arguments."""

    group = "learner"


class OtherRun(ConfigError):
    """The folder holds the results of another configuration."""


class SweepFailed(ConfigError):
    """Some runs of a sweep are not done; the others are."""


class Unstable(RuntimeError):
    """Training produced non-finite weights; shown without a traceback, finished tasks are kept."""

    group = "strategy"


def expected(name: str, value: Any, rule: str, hint: str = "") -> str:
    """Return the text of an error: ``name=value: expected rule, got value. hint``."""
    return f"{name}={value}: expected {rule}, got {value!r}.{hint and ' ' + hint}"
