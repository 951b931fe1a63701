"""Diagonal of the Fisher information, as a mean over examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from clbench.importance.labels import check_options, output_gradients_for
from clbench.importance.measure import measure
from clbench.importance.measurement import Measurement
from clbench.importance.outputs import Outputs, default_outputs
from clbench.params import Params


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
    """Return the diagonal Fisher information of each parameter that requires grad.

    F_i = 1/N sum_n E_y [ (d log p(y | x_n) / d theta_i)^2 ]

    ``labels`` selects the expectation over y (van de Ven 2025, "On the computation of the Fisher information in continual
    learning", compares them):

    - ``exact``: all competing outputs, weighted by the probabilities of the model. This is the Fisher information.
    - ``sample``: ``label_samples`` labels per example, drawn from the model. An unbiased estimate of ``exact``.
    - ``empirical``: the true label. It differs from the Fisher unless the model's probabilities are right.
    - ``predicted``: the most probable label.

    The result does not depend on the batch size, the order of the examples, a smaller last batch or the device. The module is
    measured in evaluation mode. Its state and the random generators are restored.

    Args:
        module: Any module.
        batches: Any iterable of batches. It is read once.
        labels: ``exact``, ``sample``, ``empirical`` or ``predicted``, see above.
        samples: Number of examples, drawn without replacement by ``seed`` and position. None uses all.
        fisher_batch: Group size b. Values above 1 square the gradient of the mean loss of each group of b shuffled examples,
            sum_g n_g/N (mean gradient of g)^2, as some published code does. For uncorrelated gradients this is about 1/b of
            the per-example value. All examples used are kept in memory. Use 1 except for such comparisons.
        label_samples: Labels per example with ``labels="sample"``.
        loss: ``cross_entropy`` (softmax over the outputs), ``binary_cross_entropy`` (one logit z, targets 0 or 1, where exact is
            p (1 - p) (dz/dtheta)^2) or ``mse``. The loss mean_c (z_c - y_c)^2 is, up to a constant, -log of a Gaussian with
            variance C/2. So ``exact`` is sum_c (2/C) (dz_c/dtheta)^2, ``sample`` draws from that Gaussian, and ``empirical``
            uses the true residual.
        seed: Random seed of the examples, the labels and the groups.
        outputs: Function that maps ``(module, batch)`` to outputs (N, C) and targets (N,) or None.
        chunk: Largest number of examples per forward pass. By default it follows from the memory, and batches of fewer than 64
            examples are merged. A module that accepts one example at a time needs ``chunk=1``.

    Returns:
        The Fisher information by parameter name, with the shape and device of the parameter, in float32 or wider and detached.
        Parameters that the outputs do not use have zeros.

    Raises:
        ValueError: An argument, the batches, the outputs or the targets are invalid, or the result is not finite.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> _ = nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)  # both classes have probability 1/2
        >>> fisher(net, [torch.tensor([[1.0, 2.0]])])["weight"]
        tensor([[0.2500, 1.0000],
                [0.2500, 1.0000]])
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
    """Return the diagonal Fisher information and the standard error of each entry.

    The standard error shows whether ``samples`` is large enough. It is the error of the mean over examples, where the value of
    an example is its sum over classes (or its mean over label samples). If ``samples`` leaves examples out, it includes the
    finite-population correction ``1 - samples / total`` (``ExampleStatistics.standard_error``).

    Args:
        module, batches, labels, samples, label_samples, loss, seed, outputs, chunk: See ``fisher``.
        fisher_batch: Must be 1, because the error is defined over examples.

    Returns:
        The Fisher information and its standard error, each by parameter name.

    Raises:
        ValueError: See ``fisher``. Also if there are fewer than two examples, or ``fisher_batch`` is above 1.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> f, error = fisher_and_error(net, [torch.randn(8, 2)])
        >>> error["weight"].shape
        torch.Size([2, 2])
    """
    check_options(labels=labels, loss=loss, fisher_batch=fisher_batch, label_samples=label_samples)
    options = Measurement(samples, fisher_batch, seed, outputs, chunk, error=True)
    return _measure(module, batches, labels, loss, label_samples, options)


def _measure(
    module: nn.Module, batches: Iterable[Any], labels: str, loss: str, label_samples: int, options: Measurement
) -> tuple[Params, Params]:
    gradients, check = output_gradients_for(labels, loss, label_samples, options.seed)
    result = measure(module, batches, gradients, torch.square, options)
    check.finish()
    return result
