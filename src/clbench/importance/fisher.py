"""Diagonal of the Fisher information, as a mean over examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar, Unpack

import torch
from torch import Tensor, nn

from clbench.importance.batching import count
from clbench.importance.label_options import LabelArguments, LabelOptions, Loss, check_options
from clbench.importance.labels import FisherGradients
from clbench.importance.measure import measure
from clbench.importance.measurement import Measurement
from clbench.importance.output_gradients import OutputGradients, one_column
from clbench.importance.outputs import (
    Forward,
    Outputs,
    WithLoss,
    check_outputs,
    default_outputs,
    is_default,
    returned_outputs,
)
from clbench.params import Params

T = TypeVar("T")

Check = Callable[[nn.Module, Any], None] | None
"""Function that checks the first examples, called with the module and them."""


def fisher(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    labels: str = "exact",
    samples: int | None = None,
    fisher_batch: int = 1,
    label_samples: int = 1,
    loss: Loss = "cross_entropy",
    reduction: str = "sum",
    ignore_index: int = -100,
    class_dim: int | None = None,
    seed: int = 0,
    outputs: Outputs = default_outputs,
    chunk: int | None = None,
) -> Params:
    """Return the diagonal Fisher information of each parameter that requires grad.

    F_i = 1/N sum_n E_y [ (d log p(y | x_n) / d theta_i)^2 ]

    ``labels`` selects the expectation over y (van de Ven 2025, "On the computation of the Fisher information in continual
    learning", compares them):

    - ``exact``: all competing outputs, weighted by the probabilities of the model. This is the Fisher information. It takes
      P (C - 1) backward passes for P positions of C classes, and more than 1,000 are refused.
    - ``sample``: ``label_samples`` labels per position, drawn from the model. An unbiased estimate of ``exact`` that takes
      ``label_samples`` backward passes.
    - ``empirical``: the true label. It differs from the Fisher unless the model's probabilities are right.
    - ``predicted``: the most probable label.
    - ``weighted``: the true label y, with the weight p(y | x_n), as Mammoth computes it. This is one term of ``exact``.
    - ``reversed``: (d CE(-z, y) / d theta_i)^2 with the true label y and the negated logits -z (EWC-DR, Liu and Chang 2026).
      Where the model is certain of the right label it is large, while the Fisher vanishes.

    The last two are defined for one label per example with ``loss="cross_entropy"``. An output of -inf does not compete, negated
    or not. A finite mask such as -1e9 would dominate the negated softmax.

    The result does not depend on the batch size, the order of the examples, a smaller last batch or the device. The module is
    measured in evaluation mode. Its state and the random generators are restored.

    Args:
        module: Any module.
        batches: Any iterable of batches. It is read once.
        labels: ``exact``, ``sample``, ``empirical``, ``predicted``, ``weighted`` or ``reversed``, see above.
        samples: Number of examples, drawn without replacement by ``seed`` and position. None uses all.
        fisher_batch: Group size b. Values above 1 square the gradient of the mean loss of each group of b shuffled examples,
            sum_g n_g/N (mean gradient of g)^2, as some published code does. For uncorrelated gradients this is about 1/b of
            the per-example value. All examples used are kept in memory. Use 1 except for such comparisons, and with
            ``labels="weighted"``.
        label_samples: Labels per example with ``labels="sample"``.
        loss: ``cross_entropy`` (softmax over the classes), ``binary_cross_entropy`` (an independent label 0 or 1 for each output,
            where exact is sum_c p_c (1 - p_c) (dz_c/dtheta)^2) or ``mse``. The loss mean_c (z_c - y_c)^2 is, up to a constant,
            -log of a Gaussian with variance C/2. So ``exact`` is sum_c (2/C) (dz_c/dtheta)^2, ``sample`` draws from that
            Gaussian, and ``empirical`` uses the true residual. With ``labels="empirical"`` it may also be a function
            ``loss(outputs, targets)`` that returns the loss of each example, (N,).
        reduction: How the log-likelihoods of the positions of an example (tokens, pixels, labels) become that of the example.
            ``sum`` adds them, as the definition above says. ``mean`` divides by their number P, so that the Fisher is divided by
            P^2, and the same penalty needs P^2 times the lam. It has no effect on ``mse``, whose loss is a mean.
        ignore_index: Target of positions that do not count, with any kind of labels. An example without a position that counts
            is left out of the mean.
        class_dim: Dimension of the outputs that contains the classes, for ``cross_entropy``. By default the shape of the targets
            shows it: (N, ...) for outputs (N, ..., C), and (N, H, W) for (N, C, H, W).
        seed: Random seed of the examples, the labels and the groups.
        outputs: Function that maps ``(module, batch)`` to outputs and targets, or to outputs, targets and a mask. Outputs are
            (N, C), (N, ..., C) or (N, C, ...), targets have one entry per position or are None. The mask (bool) says which
            positions count.
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
    label_options = check_options(
        labels=labels,
        loss=loss,
        fisher_batch=fisher_batch,
        label_samples=label_samples,
        reduction=reduction,
        ignore_index=ignore_index,
        class_dim=class_dim,
    )
    return _measure(module, batches, label_options, Measurement(samples, fisher_batch, seed, outputs, chunk))[0]


class FisherArguments(LabelArguments, total=False):
    """Keyword arguments of ``fisher``."""

    labels: str
    samples: int | None
    fisher_batch: int
    seed: int
    outputs: Outputs
    chunk: int | None


def fisher_and_error(
    module: nn.Module, batches: Iterable[Any], **arguments: Unpack[FisherArguments]
) -> tuple[Params, Params]:
    """Return the diagonal Fisher information and the standard error of each entry.

    The standard error shows whether ``samples`` is large enough. It is the error of the mean over examples, where the value of
    an example is its sum over classes (or its mean over label samples). If ``samples`` leaves examples out, it includes the
    finite-population correction ``1 - samples / total`` (``ExampleStatistics.standard_error``).

    Args:
        module, batches: See ``fisher``.
        arguments: See ``fisher``. ``fisher_batch`` must be 1, because the error is defined over examples.

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
    return _measure(module, batches, *divided(arguments, error=True))


def divided(arguments: FisherArguments, error: bool = False) -> tuple[LabelOptions, Measurement]:
    """Return the arguments of ``fisher`` as options of the labels and of the measurement.

    Raises:
        ValueError: A value is out of range.
    """
    names = {field.name for field in fields(Measurement)}
    measurement = {name: value for name, value in arguments.items() if name in names}
    of_labels = {name: value for name, value in arguments.items() if name not in names}
    options = Measurement(**measurement, error=error)  # type: ignore[arg-type]
    return check_options(fisher_batch=options.fisher_batch, **of_labels), options


def _measure(
    module: nn.Module, batches: Iterable[Any], label_options: LabelOptions, options: Measurement
) -> tuple[Params, Params]:
    def run(gradients: OutputGradients, options: Measurement, check: Check) -> tuple[Params, Params]:
        return measure(module, batches, gradients, torch.square, options, check)

    return with_gradients(run, label_options, options)


def with_gradients(
    run: Callable[[OutputGradients, Measurement, Check], T], label_options: LabelOptions, options: Measurement
) -> T:
    """Return what ``run`` returns for the output gradients of the likelihood, the options and a check of the first examples."""
    if callable(label_options.loss):
        options = replace(options, outputs=loss_of_each(label_options.loss, options.outputs))
        return run(one_column(torch.ones_like), options, None)
    gradients = FisherGradients(label_options, options.seed)
    check = partial(check_own_loss, options.outputs, gradients) if is_default(options.outputs) else None
    result = run(gradients, options, check)
    gradients.finish()
    return result


def loss_of_each(loss: Callable[[Any, Any], Tensor], outputs: Outputs) -> Outputs:
    """Return outputs (N, 1) that are the losses of the examples. By default ``loss`` gets all that the module returns."""
    outputs = returned_outputs if outputs is default_outputs else outputs

    def losses(module: nn.Module, batch: Any) -> tuple[Any, ...]:
        z, y, *mask = outputs(module, batch)
        value = loss(z, y)
        if not isinstance(value, Tensor) or value.shape != (n := count(batch),):
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"loss=function: expected one loss per example, shape ({n},), got {found}. Use reduction='none', and the mean or "
                "sum over all dimensions but the first"
            )
        return value[:, None], None, *mask

    return losses


def check_own_loss(outputs: Outputs, gradients: FisherGradients, module: nn.Module, batch: Any) -> None:
    """Check that the loss of outputs and targets is the one that the module itself returns, if it returns one.

    Raises:
        ValueError: It is another, so outputs and targets belong together in another way.
    """
    with torch.no_grad():
        found = outputs(module, batch)
        if not isinstance(found, WithLoss) or found.loss is None or found[1] is None:
            return
        check_outputs(found[0], count(batch), batch)
        mean = gradients.mean_loss(Forward(*found).detached())
    own = float(found.loss)
    if mean is None or not abs(mean - own) <= 1e-4 * max(1.0, abs(own)):  # nan is no agreement
        what = "no targets fit its outputs" if mean is None else f"that of its outputs and targets is {mean:.5g}"
        raise ValueError(
            f"{type(module).__name__} returns a loss of {own:.5g}, but for loss={gradients.options.loss} {what}. Its outputs and "
            "targets belong together in another way (causal language models shift their labels). Pass outputs=fn, such as "
            "outputs=lambda module, batch: (module(**batch).logits[:, :-1], batch['labels'][:, 1:]), or another loss="
        )
