"""Freeze parameters of a body by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from clbench.config.known_names import suggest
from clbench.errors import ConfigError


def freeze(body: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude the parameters of ``body`` whose names match one of ``patterns`` from training and from every penalty.

    The statistics of BatchNorm are no parameters and still change.

    Args:
        body: The body, changed in place.
        patterns: Patterns with ``*``, ``?`` and ``[...]``, such as ``layer1.*``.

    Raises:
        ConfigError: A pattern matches no parameter.

    Example:
        >>> body = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> freeze(body, ["0.*"])
        >>> [name for name, parameter in body.named_parameters() if parameter.requires_grad]
        ['2.weight', '2.bias']
    """
    parameters = dict(body.named_parameters())
    for pattern in patterns:
        for name in matching("net.freeze", pattern, list(parameters), "parameter"):
            parameters[name].requires_grad_(False)


def matching(option: str, pattern: str, names: list[str], what: str) -> list[str]:
    """Return those of ``names`` that ``pattern``, a value of ``option``, matches.

    Raises:
        ConfigError: There is none.
    """
    if found := [name for name in names if fnmatchcase(name, pattern)]:
        return found
    if any(name.startswith(f"{pattern}.") for name in names):
        hint = f" Try {pattern}.*"
    else:
        hint = f"{suggest(pattern, names)} The first of {len(names)} names are {', '.join(names[:4]) or 'none'}."
    raise ConfigError(f"{option}={pattern}: expected a pattern that matches a {what} of the body.{hint}")
