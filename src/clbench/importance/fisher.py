"""Diagonal of the Fisher information, as a mean over examples of a per-example quantity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from clbench.importance.general import Outputs
from clbench.importance.labels import check_options, output_gradients_for
from clbench.importance.measure import measure
from clbench.importance.measurement import Measurement
from clbench.importance.outputs import default_outputs
from clbench.params import Params, trainable


def fisher(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    labels: str = "exact",
    samples: int | None = None,
    fisher_batch: int = 1,
    label_samples: int = 1,
    loss: str = "cross_entropy",
    seed: int = 0,
    outputs: Outputs = default_outputs,
    chunk: int | None = None,
) -> Params:
    """Mean over examples of the squared gradient of -log p(y | x), for each parameter that requires grad.

    F_i = 1/N sum_n E_y [ (d log p(y | x_n) / d theta_i)^2 ], the expectation as ``labels`` says (van de Ven 2025,
    "On the computation of the Fisher information in continual learning", has all of these):

    - ``exact``: over all outputs that compete, by the model's own probabilities. The Fisher itself.
    - ``sample``: ``label_samples`` labels per example from the model's distribution. Unbiased for ``exact``.
    - ``empirical``: the true label. Not a Fisher unless the model is right.
    - ``predicted``: the most probable label.

    The value does not depend on batch size, order, the last partial batch or the device. Nothing about ``module`` or
    the random states is changed; it is measured in evaluation mode.

    Args:
        module: any module.
        batches: any iterable of batches, read once.
        labels: see above.
        samples: number of examples, drawn without replacement by ``seed`` and position; None for all.
        fisher_batch: b > 1 squares the gradient of the mean loss over groups of b shuffled examples instead:
            sum_g n_g/N (mean gradient of g)^2. About 1/b of the per-example value near random gradients; only for
            comparison with code that does so. Holds the examples used in memory.
        label_samples: labels per example for ``labels="sample"``.
        loss: ``cross_entropy`` (softmax over the outputs), ``binary_cross_entropy`` (one logit, targets 0 or 1; exact is
            p (1 - p) (dz/dtheta)^2) or ``mse``: L = mean_c (z_c - y_c)^2 is -log of a Gaussian with variance C/2 up to a
            constant, so exact is sum_c (2/C) (dz_c/dtheta)^2, ``sample`` draws from that Gaussian, and ``empirical``
            takes the true residual.
        seed: of the draw of examples, of labels and of groups.
        outputs: maps ``(module, batch)`` to outputs (N, C) and targets (N,) or None.
        chunk: most examples per forward pass; by default the memory decides, and batches of fewer than 64 examples are
            measured together. A module that takes one example at a time needs ``chunk=1``.

    Returns:
        By parameter name: the Fisher, shaped like the parameter, on its device, in float32 or wider, detached. Zeros for a
        parameter that the outputs do not use.

    Raises:
        ValueError: an argument, the batches, the outputs or the targets are not as described, or the result is not finite.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> f = fisher(net, [(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))])
        >>> f["weight"].shape
        torch.Size([2, 3])
    """
    check_options(labels=labels, loss=loss, fisher_batch=fisher_batch, label_samples=label_samples)
    options = Measurement(samples, fisher_batch, seed, outputs, chunk)
    return _measure(module, batches, labels, loss, label_samples, options)[0]


def fisher_and_error(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    labels: str = "exact",
    samples: int | None = None,
    fisher_batch: int = 1,
    label_samples: int = 1,
    loss: str = "cross_entropy",
    seed: int = 0,
    outputs: Outputs = default_outputs,
    chunk: int | None = None,
) -> tuple[Params, Params]:
    """``fisher`` and the standard error of each entry, to see whether ``samples`` was enough.

    The value of an example is its sum over classes (or mean over label samples). The error is that of the mean over examples,
    with the finite-population correction ``1 - samples / total`` when ``samples`` leaves some out
    (``ExampleStatistics.standard_error``).

    Args:
        module, batches, labels, samples, label_samples, loss, seed, outputs, chunk: as in ``fisher``.
        fisher_batch: 1; groups have no error over examples.

    Returns:
        The Fisher and its standard error, each by parameter name.

    Raises:
        ValueError: as in ``fisher``; fewer than two examples; groups.
    """
    check_options(labels=labels, loss=loss, fisher_batch=fisher_batch, label_samples=label_samples)
    options = Measurement(samples, fisher_batch, seed, outputs, chunk, error=True)
    return _measure(module, batches, labels, loss, label_samples, options)


def _measure(
    module: nn.Module, batches: Iterable[Any], labels: str, loss: str, label_samples: int, options: Measurement
) -> tuple[Params, Params]:
    for name, p in trainable(module).items():
        if p.is_complex():
            raise ValueError(
                f"parameter {name!r} is complex, so its Fisher would be the square of a complex number; store real and imaginary "
                "parts as two real parameters, or set requires_grad=False"
            )
    gradients, check = output_gradients_for(labels, loss, label_samples, options.seed)
    result = measure(module, batches, gradients, torch.square, options)
    check.finish()
    return result
