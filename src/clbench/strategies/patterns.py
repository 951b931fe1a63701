"""Which parameters a penalty holds, by patterns on their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from clbench.errors import StrategyError
from clbench.params import named_parameters

Patterns = str | Sequence[str] | None


def selected(module: nn.Module, include: Patterns = None, exclude: Patterns = None) -> set[str]:
    """Names of the parameters that match a pattern of ``include`` (None = all) and none of ``exclude``.

    A pattern (``*``, ``?``, ``[...]``; case counts) is matched against the whole name of a parameter, ``net.body.1.weight``,
    and against the type of its layer with its name there, ``Linear.weight``: so ``*.heads.*`` are heads, ``BatchNorm*``
    all scales and shifts of BatchNorm whatever they are called, ``*.bias`` all biases.

    Raises:
        ConfigError: a pattern matches no parameter of ``module``; no parameter is left.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> sorted(selected(net, exclude=["BatchNorm*", "*.bias"]))
        ['0.weight']
    """
    names = dict(_names(module))
    kept = _matching(names, "include", include) if include is not None else set(names)
    if exclude is not None:
        kept -= _matching(names, "exclude", exclude)
    if not kept and names:
        raise StrategyError(
            f"include={include} with exclude={exclude} leaves no parameter with a penalty. Use strategy=finetune"
        )
    return kept


def _names(module: nn.Module) -> Iterator[tuple[str, str]]:
    """(name of a parameter, ``Type.name`` of it in its layer); a shared parameter once, as in ``named_parameters``."""
    names = {id(p): name for name, p in named_parameters(module).items()}
    for layer in module.modules():
        for local, p in layer.named_parameters(recurse=False):
            if (name := names.pop(id(p), None)) is not None:
                yield name, f"{type(layer).__name__}.{local}"


def _matching(names: dict[str, str], option: str, patterns: str | Sequence[str]) -> set[str]:
    matching = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for name, typed in names.items() if fnmatchcase(name, pattern) or fnmatchcase(typed, pattern)}
        if not found:
            some = ", ".join(f"{name} ({typed})" for name, typed in list(names.items())[:4])
            raise StrategyError(
                f"{option}={pattern!r} matches no parameter. The {len(names)} there are begin with {some}. Give patterns such "
                "as '*.bias' or 'BatchNorm*'"
            )
        matching |= found
    return matching


def is_left_out(name: str, include: Patterns, exclude: Patterns) -> bool:
    """Return whether the patterns leave out a parameter of which only the name is known."""

    def matches(patterns: str | Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))

    return (include is not None and not matches(include)) or (exclude is not None and matches(exclude))
