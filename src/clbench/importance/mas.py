"""Memory Aware Synapses: the sensitivity of the outputs to each parameter, without labels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from clbench.importance.measure import measure
from clbench.importance.measurement import Measurement
from clbench.importance.output_gradients import one_column
from clbench.importance.outputs import Outputs, default_outputs, forward
from clbench.params import Params, trainable, widen

SQUARED_NORM = one_column(lambda z: 2 * z)
"""The gradient of ||z||^2 at the outputs, 2 z."""


def mas(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None = None,
    fisher_batch: int = 1,
    seed: int = 0,
    outputs: Outputs = default_outputs,
    chunk: int | None = None,
) -> Params:
    """Return the mean over examples of the absolute gradient of the squared L2 norm of the outputs.

    Omega_i = 1/N sum_n | d ||f(x_n)||^2 / d theta_i |

    This is eq. 3 with section 4.1 of Aljundi et al. 2018 (ECCV). The absolute value is inside the sum. The authors' code takes
    the absolute value of a batch mean instead, in which gradients of opposite sign cancel. ``fisher_batch`` set to their batch
    size gives that. Targets are not used, so unlabelled data suffices.

    Other code differs by further factors. Hsu et al. 2018 use batch means, and the mean over the C outputs instead of the sum,
    which gives 1/C of this value with ``fisher_batch``. FACIL uses the norm instead of its square, which divides the gradient of
    example n by 2 ||f(x_n)||, so no constant converts one into the other.

    Args:
        module, batches, samples, seed, outputs, chunk: See ``fisher``. Targets may be None.
        fisher_batch: Group size b. Values above 1 use the absolute gradient of the mean over groups of b shuffled examples,
            which is at most the per-example value. For comparison with code that does so.

    Returns:
        The importance by parameter name, see ``fisher``.

    Raises:
        ValueError: An argument, the batches or the outputs are invalid, or the result is not finite.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(net.weight)
        >>> mas(net, [torch.tensor([[1.0, 2.0]])])  # 2 z x with z = 3
        {'weight': tensor([[ 6., 12.]])}
    """
    options = Measurement(samples, fisher_batch, seed, outputs, chunk)
    return measure(module, batches, SQUARED_NORM, torch.abs, options, partial(check_norm, outputs))[0]


def mas_and_error(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None = None,
    fisher_batch: int = 1,
    seed: int = 0,
    outputs: Outputs = default_outputs,
    chunk: int | None = None,
) -> tuple[Params, Params]:
    """Return ``mas`` and the standard error of each entry, see ``fisher_and_error``.

    Args:
        module, batches, samples, seed, outputs, chunk: See ``mas``.
        fisher_batch: Must be 1, because the error is defined over examples.

    Returns:
        The importance and its standard error, each by parameter name.

    Raises:
        ValueError: See ``mas``. Also if there are fewer than two examples, or ``fisher_batch`` is above 1.

    Example:
        >>> omega, error = mas_and_error(nn.Linear(2, 1), [torch.randn(8, 2)])
        >>> error["weight"].shape
        torch.Size([1, 2])
    """
    options = Measurement(samples, fisher_batch, seed, outputs, chunk, error=True)
    return measure(module, batches, SQUARED_NORM, torch.abs, options, partial(check_norm, outputs))


def check_norm(outputs: Outputs, module: nn.Module, batch: Any) -> None:
    """Check that the squared norm of the outputs depends on the parameters.

    If it is the same for all examples, its gradient is compared with that of another function of the outputs.

    Raises:
        ValueError: The gradient is zero up to rounding.
    """
    z = forward(outputs, module, batch).z
    norms = widen(z.detach()).flatten(1).square().sum(1)
    tolerance, largest = min(1e3 * torch.finfo(z.dtype).eps, 0.02), norms.max()
    if z.grad_fn is None or not 0 < largest < torch.inf or norms.max() - norms.min() > tolerance * largest:
        return
    random = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    params = list(trainable(module).values())
    gradients = (
        torch.autograd.grad(z, params, v, retain_graph=True, allow_unused=True)
        for v in (2 * z.detach(), z.detach() * random)
    )
    norm, other = (sum(float(widen(g).square().sum()) for g in found if g is not None) for found in gradients)
    if norm < tolerance**2 * other:
        raise ValueError(
            f"the squared norm of the outputs is {float(largest):.4g} for every example and does not depend on the parameters "
            "(normalised outputs?), so MAS is zero up to rounding. Pass outputs=fn that returns the outputs before they are "
            "normalised"
        )
