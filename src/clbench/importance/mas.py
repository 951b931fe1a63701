"""Memory Aware Synapses: how much the outputs move with each parameter, without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from clbench.importance.general import Outputs
from clbench.importance.measure import measure
from clbench.importance.measurement import Measurement
from clbench.importance.output_gradients import OutputGradients
from clbench.importance.outputs import default_outputs
from clbench.params import Params

SQUARED_NORM = OutputGradients(lambda c: 1, lambda z, y: iter([2 * z]))
"""Gradient of ||z||^2 at the outputs."""


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
    """Mean over examples of the absolute gradient of the squared L2 norm of the raw outputs.

    Omega_i = 1/N sum_n | d ||f(x_n)||^2 / d theta_i |  (Aljundi et al. 2018, ECCV, eq. 3 and section 4.1). The absolute
    value is inside the sum: the authors' code takes it of a batch mean instead, where gradients of opposite sign cancel;
    that is ``fisher_batch`` = their batch size. Targets are not looked at, so unlabelled data will do.

    Other code has further factors. Hsu et al. 2018 take batch means and the mean over the C outputs instead of their sum,
    which is 1/C of this with ``fisher_batch``; FACIL takes the norm instead of its square, which divides the gradient of
    example n by 2 ||f(x_n)||, so no constant translates it.

    Args:
        module, batches, samples, seed, outputs, chunk: as in ``fisher``; targets may be None.
        fisher_batch: b > 1 takes the absolute gradient of the mean over groups of b shuffled examples; for comparison.
            It is at most the per-example value.

    Returns:
        By parameter name, as in ``fisher``.

    Raises:
        ValueError: an argument, the batches or the outputs are not as described, or the result is not finite.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> mas(net, [torch.randn(5, 3)])["bias"].shape
        torch.Size([2])
    """
    options = Measurement(samples, fisher_batch, seed, outputs, chunk)
    return measure(module, batches, SQUARED_NORM, torch.abs, options)[0]


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
    """``mas`` and the standard error of each entry, as in ``fisher_and_error``.

    Args:
        module, batches, samples, seed, outputs, chunk: as in ``mas``.
        fisher_batch: 1; groups have no error over examples.

    Returns:
        The importance and its standard error, each by parameter name.

    Raises:
        ValueError: as in ``mas``; fewer than two examples; groups.
    """
    options = Measurement(samples, fisher_batch, seed, outputs, chunk, error=True)
    return measure(module, batches, SQUARED_NORM, torch.abs, options)
