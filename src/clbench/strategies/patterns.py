"""Selection of parameters by patterns on their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from clbench.errors import StrategyError
from clbench.params import named_parameters

Patterns = str | Sequence[str] | None


def selected(
    module: nn.Module, include: Patterns = None, exclude: Patterns = None, known: Iterable[str] = ()
) -> set[str]:
    """Return the names of the parameters that match a pattern of ``include`` (None for all) and no pattern of ``exclude``.

    A pattern (``*``, ``?``, ``[...]``, case-sensitive) is compared with the full name of a parameter, ``net.body.1.weight``, and
    with the type of its layer and its name there, ``Linear.weight``. So ``*.heads.*`` matches heads, ``BatchNorm*`` all scales
    and shifts of BatchNorm layers, and ``*.bias`` all biases.

    Args:
        module: The module.
        include, exclude: A pattern or a list of patterns.
        known: Names of parameters that ``module`` had in earlier tasks. A pattern may match only these.

    Raises:
        ConfigError: A pattern matches no parameter, or no parameter is left.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> sorted(selected(net, exclude=["BatchNorm*", "*.bias"]))
        ['0.weight']
    """
    names = dict(_names_and_types(module))
    kept = _matching(names, "include", include, known) if include is not None else set(names)
    if exclude is not None:
        kept -= _matching(names, "exclude", exclude, known)
    if not kept and names:
        raise StrategyError(
            f"include={include} with exclude={exclude}: expected at least one parameter with a penalty, got none. Use "
            "strategy=finetune for no penalty"
        )
    return kept


def _names_and_types(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (full name, ``Type.name``) of every parameter. A shared parameter comes once, as in ``named_parameters``."""
    names = {id(p): name for name, p in named_parameters(module).items()}
    for layer in module.modules():
        for local, p in layer.named_parameters(recurse=False):
            if (name := names.pop(id(p), None)) is not None:
                yield name, f"{type(layer).__name__}.{local}"


def _matching(names: dict[str, str], option: str, patterns: str | Sequence[str], known: Iterable[str]) -> set[str]:
    matching: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for name, typed in names.items() if fnmatchcase(name, pattern) or fnmatchcase(typed, pattern)}
        if not found and not any(fnmatchcase(name, pattern) for name in known):
            some = ", ".join(f"{name} ({typed})" for name, typed in list(names.items())[:4])
            raise StrategyError(
                f"{option}={pattern!r}: expected a pattern that matches a parameter. The first of {len(names)} parameters are "
                f"{some}. Try '*.bias' or 'BatchNorm*'"
            )
        matching |= found
    return matching


def is_left_out(name: str, include: Patterns, exclude: Patterns) -> bool:
    """Return whether the patterns leave out a parameter of which only the name is known."""

    def matches(patterns: str | Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))

    return (include is not None and not matches(include)) or (exclude is not None and matches(exclude))
