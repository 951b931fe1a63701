"""The error of a wrong input: one line that names the value, the rule and the remedy."""

from __future__ import annotations


class ConfigError(ValueError):
    """What the user asked for cannot be run; raised before training starts, shown without a traceback."""


class OtherRun(ConfigError):
    """The folder holds the results of another configuration."""


class SweepFailed(ConfigError):
    """Some runs of a sweep are not done; the others are."""


class Unstable(RuntimeError):
    """Training produced non-finite weights; shown without a traceback, finished tasks are kept."""
