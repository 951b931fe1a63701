"""The steps shared by all importances: draw the examples, measure inside ``preserve_state`` and check the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from clbench.errors import StrategyError
from clbench.importance.batching import (
    Counted,
    Example,
    count,
    move_to,
    split_examples,
    stack_examples,
    subsample,
    take,
)
from clbench.importance.engine import Engine
from clbench.importance.example_statistics import ExampleStatistics
from clbench.importance.measurement import Measurement
from clbench.importance.output_gradients import OutputGradients
from clbench.importance.outputs import Forward, check_differentiable, forward
from clbench.importance.preserve_state import preserve_state
from clbench.importance.probe import check_independent
from clbench.params import Params, trainable


def measure_groups(
    module: nn.Module,
    batches: Iterable[Any],
    output_gradients: OutputGradients,
    square_or_abs: Callable[[Tensor], Tensor],
    options: Measurement,
) -> ExampleStatistics:
    """Return the sum over groups g of n_g * sum_k square_or_abs(mean over the group of J^T v_k).

    A group is ``fisher_batch`` shuffled examples. The last group may be smaller and is weighted by its number of examples. Each
    group and column takes one ordinary backward pass. All examples are kept in memory for the shuffle, which depends on ``seed``
    and their order only.
    """
    params = trainable(module)
    device = next(iter(params.values())).device
    examples: list[Example] = []
    for batch in batches:
        if not examples:
            check_independent(module, options.outputs, move_to(batch, device))
        examples.extend(split_examples(batch, range(count(batch))))
    keys = torch.rand(len(examples), generator=torch.Generator().manual_seed(options.seed), dtype=torch.float64)
    order = keys.argsort(stable=True).tolist()
    statistics = ExampleStatistics(params, second=False)
    for start in range(0, len(order), options.fisher_batch):
        group = [examples[i] for i in order[start : start + options.fisher_batch]]
        run = partial(forward, options.outputs, module)
        sums, n = _column_sums(run, params, stack_examples(group, options.chunk or len(group)), output_gradients)
        for column in sums if n else []:
            for name, total in column.items():
                statistics.first[name] += n * square_or_abs(total / n)
        statistics.count(len(group), n)
    return statistics


def _column_sums(
    run: Callable[[Any], Forward], params: Params, batches: Iterable[Any], output_gradients: OutputGradients
) -> tuple[list[dict[str, Tensor]], int]:
    """Return sum_n J_n^T v_k of each parameter over all examples of ``batches``, for each column k, and how many count."""
    device = next(iter(params.values())).device
    sums: list[dict[str, Tensor]] = []
    examples = 0
    for batch in batches:
        result = run(move_to(batch, device))
        check_differentiable(z := result.z)
        columns = output_gradients(result.detached())
        examples += int(columns.examples)
        for k, v in enumerate(columns.each):
            if k == len(sums):
                sums.append({name: _zeros(p) for name, p in params.items()})
            grads = torch.autograd.grad(z, list(params.values()), v.to(z.dtype), retain_graph=True, allow_unused=True)
            for name, g in zip(params, grads, strict=True):
                if g is not None:
                    sums[k][name] += g
    return sums, examples


def _zeros(p: Tensor) -> Tensor:
    """Return zeros shaped like ``p``, in float32 or wider."""
    return torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)


def measure(
    module: nn.Module,
    batches: Iterable[Any],
    output_gradients: OutputGradients,
    square_or_abs: Callable[[Tensor], Tensor],
    options: Measurement,
    check: Callable[[nn.Module, Any], None] | None = None,
) -> tuple[Params, Params]:
    """Return the mean over the examples used and, with ``options.error``, the standard error of each entry (else an empty dict).

    Raises:
        ValueError: See ``drawn``. Also if an entry of the result is not finite.
    """
    with drawn(module, batches, options, check) as (used, counted):
        if options.fisher_batch > 1:
            statistics = measure_groups(module, used, output_gradients, square_or_abs, options)
        else:
            statistics = Engine(module, output_gradients, square_or_abs, options).run(used)
        return check_finite(statistics.mean()), statistics.standard_error(counted.total) if options.error else {}


@contextmanager
def drawn(
    module: nn.Module,
    batches: Iterable[Any],
    options: Measurement,
    check: Callable[[nn.Module, Any], None] | None = None,
) -> Iterator[tuple[Iterator[Any], Counted]]:
    """Preserve the state of ``module`` inside, and give the examples used and all examples.

    ``check`` is called with the module and the first examples.

    Raises:
        ValueError: No parameter is trainable, one cannot be measured, or the examples cannot be drawn.
    """
    for name, p in module.named_parameters():
        if is_lazy(p):
            raise ValueError(
                f"parameter {name!r} has no shape yet (a lazy layer). Run one batch through the module first"
            )
        if p.is_complex() and p.requires_grad:
            raise ValueError(
                f"parameter {name!r} is complex, and the importance of a complex number is not defined here. Store its real and "
                "imaginary parts as two real parameters, or set requires_grad=False"
            )
    if not trainable(module):
        raise ValueError("no parameter of the module requires grad, so there is nothing to measure. Set requires_grad")
    counted = Counted(batches)
    with preserve_state(module):
        used = subsample(counted, options.samples, options.seed)
        if check is not None:
            first = next(used)
            check(module, move_to(take(first, slice(0, 4)), next(module.parameters()).device))
            used = chain([first], used)
        yield used, counted


def check_finite(importance: Params) -> Params:
    """Return ``importance`` if all of it is finite.

    Raises:
        StrategyError: An entry is not finite. It is a ValueError.
    """
    for name, value in importance.items():
        if not bool(value.sum().isfinite()):  # no entry is negative, so infinities cannot cancel
            raise StrategyError(
                f"the importance of {name!r} is not finite, because the weights have diverged or an output is infinite. "
                "Lower the learning rate or scale the inputs"
            )
    return importance
