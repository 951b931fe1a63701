"""The steps that every importance shares: draw the examples, measure undisturbed, check the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from clbench.importance.draw import Counted, draw
from clbench.importance.engine import Engine
from clbench.importance.general import Outputs
from clbench.importance.groups import grouped
from clbench.importance.seeds import Seeds
from clbench.importance.undisturbed import undisturbed
from clbench.params import Params


def measure(
    module: nn.Module,
    batches: Iterable[Any],
    seeds: Seeds,
    size: Callable[[Tensor], Tensor],
    *,
    samples: int | None,
    fisher_batch: int,
    seed: int,
    outputs: Outputs,
    chunk: int | None,
    error: bool,
) -> tuple[Params, Params]:
    """The mean over the examples used and, if ``error``, the standard error of each of its entries (else an empty dict).

    Raises:
        ValueError: an argument is out of range, standard errors are asked for groups, or an entry is not finite.
    """
    for name, value in (("fisher_batch", fisher_batch), ("chunk", chunk)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r} is not a number of examples; use an integer of at least 1")
    if error and fisher_batch > 1:
        raise ValueError(f"standard errors are over examples, not over groups of fisher_batch={fisher_batch}; use 1")
    counted = Counted(batches)
    with undisturbed(module):
        used = draw(counted, samples, seed)
        if fisher_batch > 1:
            moments = grouped(
                module, used, seeds, size, fisher_batch=fisher_batch, seed=seed, outputs=outputs, chunk=chunk
            )
        else:
            moments = Engine(module, seeds, size, outputs, chunk, error).run(used)
        return finite(moments.mean()), moments.standard_error(counted.total) if error else {}


def finite(importance: Params) -> Params:
    """``importance`` itself, if it is finite.

    Raises:
        ValueError: an entry is not.
    """
    for name, value in importance.items():
        if not bool(value.sum().isfinite()):  # nothing in it is negative
            raise ValueError(
                f"the importance of {name!r} is not finite; the weights have diverged or an output is infinite: "
                "lower the learning rate or scale the inputs"
            )
    return importance
