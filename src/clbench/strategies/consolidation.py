"""The arithmetic of a consolidation: merge an importance into a penalty, and bring a penalty to the module as it is now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clbench.errors import StrategyError
from clbench.params import Params, move_like, widen
from clbench.strategies import quadratic
from clbench.strategies.patterns import Patterns, is_left_out
from clbench.strategies.quadratic import Quadratic

Merge = Callable[[Quadratic, Quadratic], Quadratic]

LARGE = 2**14
"""Elements that are merged at a time."""


def stored(q: Quadratic, params: Params, store: str | None) -> Quadratic:
    """Return the penalty as it is kept between consolidations.

    With ``bfloat16`` the anchor has the dtype of its parameter, because an anchor that is rounded would pull the weights away.
    """
    if store == "cpu":
        return Quadratic(
            {k: f.cpu() for k, f in q.importance.items()}, {k: a.cpu() for k, a in q.anchor.items()}, q.constant
        )
    if store == "bfloat16":
        anchor = {name: a.to(params[name].dtype) if name in params else a for name, a in q.anchor.items()}
        return Quadratic({name: f.bfloat16() for name, f in q.importance.items()}, anchor, q.constant)
    return q


def merged(
    old: list[Quadratic],
    importance: Params,
    params: Params,
    merge: Merge,
    elementwise: bool,
    store: str | None = None,
) -> Quadratic:
    """Return the penalty with ``importance`` at the anchor ``params`` merged into it.

    Args:
        old: The penalty so far in a list that is emptied, so that its memory can be freed on the way. Empty for the first task.
        importance: The importance of the task, emptied too. Its tensors are overwritten.
        params: The parameters, by the same names.
        merge: Merges two penalties.
        elementwise: ``merge`` treats each element alone. Then a few rows are merged at a time, so that little memory is needed
            in addition to the importance and the anchor of the task.
        store: Where the penalty is kept, see ``stored``.
    """
    if not old or not elementwise:
        anchor = {name: p.detach().to(importance[name].dtype, copy=True) for name, p in params.items()}
        new = quadratic.quadratic(importance, anchor)
        return stored(merge(_loaded(old.pop(), params), new) if old else new, params, store)
    q = old.pop()
    f, a, zero = dict(q.importance), dict(q.anchor), torch.zeros_like(q.constant)
    constant = merge(Quadratic({}, {}, q.constant), Quadratic({}, {}, zero)).constant
    del q
    for name in [*f, *(name for name in importance if name not in f)]:
        mine = (
            _loaded(Quadratic({name: f[name]}, {name: a[name]}, zero), params) if name in f else Quadratic({}, {}, zero)
        )
        new = Quadratic({}, {}, zero)
        if name in importance:
            value = importance.pop(name)
            new = Quadratic({name: value}, {name: params[name].detach().to(value.dtype, copy=True)}, zero)
        parts = list(_rows(name, mine, new))
        for old_rows, new_rows in parts:
            both = merge(old_rows, new_rows)
            constant = constant + both.constant
            if len(parts) > 1:
                new_rows.importance[name].copy_(both.importance[name])
                new_rows.anchor[name].copy_(both.anchor[name])
                both = new
        both = stored(both, params, store)
        f[name], a[name] = both.importance[name], both.anchor[name]
    return Quadratic(f, a, constant)


def _loaded(q: Quadratic, params: Params) -> Quadratic:
    """Return the penalty on the devices of the parameters, in float32 or wider."""
    importance, anchor = ({k: widen(t) for k, t in part.items()} for part in (q.importance, q.anchor))
    return Quadratic(move_like(importance, params), move_like(anchor, params), q.constant)


def _rows(name: str, old: Quadratic, new: Quadratic) -> Iterator[tuple[Quadratic, Quadratic]]:
    """Yield both in views of a few rows of the parameter, or whole if it is small, or if only one of them has it."""
    tensors = [part[name] for q in (old, new) for part in (q.importance, q.anchor) if name in part]
    size = tensors[0].numel()
    if len(tensors) < 4 or size <= LARGE or len({t.dtype for t in tensors}) > 1:
        yield old, new
        return
    rows = max(1, LARGE * len(tensors[0]) // size)
    for f1, a1, f2, a2 in zip(*(t.split(rows) for t in tensors), strict=True):
        yield Quadratic({name: f1}, {name: a1}, old.constant), Quadratic({name: f2}, {name: a2}, new.constant)


@contextmanager
def requiring_grad(params: Iterable[Tensor]) -> Iterator[None]:
    """Let the frozen parameters among ``params`` require grad inside."""
    frozen = [p for p in params if not p.requires_grad and p.is_floating_point()]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def freezing(params: Iterable[Tensor]) -> Iterator[None]:
    """Freeze those of ``params`` inside that require grad."""
    trained = [p for p in params if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def fitted(
    q: Quadratic,
    params: Params,
    include: Patterns,
    exclude: Patterns,
    names: set[str],
    *,
    grow: bool,
    on_device: bool = True,
) -> Quadratic:
    """Return the penalty for the module as it is now: without what is excluded.

    Args:
        q: The penalty.
        params: All parameters of the module.
        include, exclude: The patterns of the strategy.
        names: The names that the patterns select.
        grow: Allow parameters that became larger. What is new has importance 0.
        on_device: Move the penalty to the devices of the parameters.

    Raises:
        ConfigError: The module lacks a parameter of the penalty, or one has another shape.
    """
    missing = [name for name in q.importance if name not in params and not is_left_out(name, include, exclude)]
    if missing:
        others = ", ".join([name for name in params if name not in q.importance][:3]) or "no others"
        raise StrategyError(
            f"{len(missing)} parameters of the penalty are not in the module: {', '.join(missing[:3])}. The module has {others}. "
            "Keep the names of parameters between tasks, or exclude those that are gone with strategy.exclude = "
            f"['{missing[0]}', ...]"
        )
    kept = [name for name in q.importance if name in names]
    importance, anchor = {name: q.importance[name] for name in kept}, {name: q.anchor[name] for name in kept}
    for name, f in importance.items():
        old, now = f.shape, params[name].shape
        can_grow = grow and len(old) == len(now) and all(a <= b for a, b in zip(old, now, strict=True))
        if now != old and not can_grow:
            raise StrategyError(
                f"{name}: expected shape {tuple(old)}, as when its importance was measured, got {tuple(now)}. If it grew, keep "
                f"the old part with strategy.grow = 'rows'. Otherwise exclude it with strategy.exclude = ['{name}']"
            )
        importance[name], anchor[name] = _padded(f, now), _padded(anchor[name], now)
    if on_device:
        importance, anchor = move_like(importance, params), move_like(anchor, params)
    return Quadratic(importance, anchor, q.constant)


def _padded(tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.shape == shape:
        return tensor
    larger = tensor.new_zeros(shape)
    larger[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return larger
