"""Output gradients for every combination of the options ``labels`` and ``loss`` of the Fisher."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clbench.errors import expected
from clbench.importance.output_gradients import (
    OutputGradients,
    bernoulli_deviation,
    binary_cross_entropy,
    cross_entropy,
    inverse_cdf,
    mse,
    multinomial_factor,
)
from clbench.params import in_float64

LABELS = ("exact", "sample", "empirical", "predicted")
LOSSES = ("cross_entropy", "binary_cross_entropy", "mse")
GRADIENTS = {"cross_entropy": cross_entropy, "binary_cross_entropy": binary_cross_entropy, "mse": mse}


def check_options(*, labels: str, loss: str, fisher_batch: int, label_samples: int) -> None:
    """Check options of ``fisher`` before anything is computed.

    Raises:
        ValueError: An option is unknown or out of range, or the combination has no meaning.

    Example:
        >>> check_options(labels="exact", loss="cross_entropy", fisher_batch=1, label_samples=1)
    """
    if labels not in LABELS:
        raise ValueError(expected("labels", labels, f"one of {', '.join(LABELS)}"))
    if loss not in LOSSES:
        raise ValueError(expected("loss", loss, f"one of {', '.join(LOSSES)}"))
    for name, value in (("fisher_batch", fisher_batch), ("label_samples", label_samples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(expected(name, value, "an integer >= 1"))
    if loss == "mse" and labels == "predicted":
        raise ValueError(
            "labels=predicted with loss=mse: the prediction is the mean, so the Fisher would be zero. Use labels=exact"
        )
    if labels == "exact" and fisher_batch > 1:
        raise ValueError(
            f"fisher_batch={fisher_batch} with labels=exact is exactly 1/{fisher_batch} of the value at fisher_batch=1, "
            f"because labels are independent. Use fisher_batch=1 and divide lam by {fisher_batch}"
        )


def columns(labels: str, loss: str, outputs: int, label_samples: int) -> int:
    """Return the number of backward passes per example.

    Example:
        >>> columns("exact", "cross_entropy", outputs=1000, label_samples=1)
        999
    """
    if labels == "exact":
        return {"cross_entropy": outputs - 1, "binary_cross_entropy": 1, "mse": outputs}[loss]
    return label_samples if labels == "sample" else 1


def output_gradients_for(labels: str, loss: str, label_samples: int, seed: int) -> tuple[OutputGradients, TargetCheck]:
    """Return the output gradients of the Fisher and the check of the targets. Call its ``finish`` at the end."""
    check = TargetCheck(loss)
    if labels == "exact":
        return OutputGradients(
            lambda c: columns(labels, loss, c, label_samples), lambda z, y: exact_columns(check.outputs(z), loss)
        ), check
    if labels == "sample":
        generator = torch.Generator().manual_seed(seed)
        return OutputGradients(
            lambda c: label_samples, lambda z, y: sample_columns(check.outputs(z), loss, label_samples, generator)
        ), check
    if labels == "predicted":
        return OutputGradients(
            lambda c: 1, lambda z, y: iter([GRADIENTS[loss](z, predict_labels(check.outputs(z), loss))])
        ), check
    return OutputGradients(lambda c: 1, lambda z, y: iter([GRADIENTS[loss](z, check(check.outputs(z), y))])), check


def exact_columns(z: Tensor, loss: str) -> Iterator[Tensor]:
    """Yield the columns of a factor of the covariance of the output gradients under the model's own distribution.

    Softmax: Cholesky factor of diag(p) - p p^T. Bernoulli: sqrt(p (1 - p)). The mean squared error mean_c (z - y)^2 is, up to
    a constant, -log of a Gaussian with variance C/2, so its covariance is (2/C) I.
    """
    if loss == "cross_entropy":
        yield from multinomial_factor(z)
    elif loss == "binary_cross_entropy":
        yield bernoulli_deviation(z)
    else:
        c = z.shape[1]
        for k in range(c):
            column = torch.zeros_like(z)
            column[:, k] = (2 / c) ** 0.5
            yield column


def sample_columns(z: Tensor, loss: str, label_samples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield gradients at labels sampled from the model, divided by sqrt(label_samples) so that their squares average.

    The generator gives a fixed number of float64 uniforms per example, in the order of the examples. The labels therefore do
    not depend on the batch size.
    """
    n, c = z.shape
    width = c if loss == "mse" else 1
    u = torch.rand(n, label_samples, width, generator=generator, dtype=torch.float64).to(in_float64(z[:0]).device)
    for d in range(label_samples):
        if loss == "cross_entropy":
            column = cross_entropy(z, inverse_cdf(z, u[:, d, 0]))
        elif loss == "binary_cross_entropy":
            column = binary_cross_entropy(z, (u[:, d, 0] < in_float64(z[:, 0]).sigmoid()).to(z.device))
        else:  # 2/C times a residual of variance C/2
            column = (2 / c) ** 0.5 * torch.special.ndtri(u[:, d].clamp_(min=1e-300)).to(z)
        yield column / label_samples**0.5


def predict_labels(z: Tensor, loss: str) -> Tensor:
    """Return the most probable label, (N,)."""
    return z.argmax(1) if loss == "cross_entropy" else z[:, 0] > 0


def _are_probabilities(z: Tensor) -> bool:
    """Return whether every row is a distribution, up to the rounding of ``z``, which may have been computed in 16 bits."""
    is_coarse = len(z) > 1 and (torch.equal(z, z.bfloat16().to(z.dtype)) or torch.equal(z, z.half().to(z.dtype)))
    return bool(((z >= 0).all() & ((z.sum(1) - 1).abs() < (1e-2 if is_coarse else 1e-4)).all()).item())


class TargetCheck:
    """Checks targets. Shapes and dtypes are checked at once, ranges in ``finish``, so that no batch waits for the device."""

    def __init__(self, loss: str) -> None:
        self.loss = loss
        self.range_errors: list[Tensor] = []
        self.classes = 0

    def outputs(self, z: Tensor) -> Tensor:
        """Return ``z`` if its number of outputs suits the loss.

        Raises:
            ValueError: It does not.
        """
        c = z.shape[1]
        if self.loss == "cross_entropy" and c < 2:
            raise ValueError(
                "loss=cross_entropy over 1 output is always zero. Use loss=binary_cross_entropy for a single logit"
            )
        if self.loss == "binary_cross_entropy" and c != 1:
            raise ValueError(
                f"loss=binary_cross_entropy: expected one logit (N, 1), got {c} columns. "
                "For one of C classes use loss=cross_entropy. Of several independent labels, select one column with outputs=..."
            )
        if self.loss == "cross_entropy" and not self.classes and _are_probabilities(z):
            raise ValueError(
                "the outputs are >= 0 and sum to 1, so they are probabilities, but loss=cross_entropy expects logits. Pass "
                "outputs=fn that returns the logits or the log-probabilities, such as outputs=lambda module, batch: "
                "(module(batch[0]).log(), batch[1])"
            )
        self.classes = c
        return z

    def __call__(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Return the true targets in the form that the gradient needs.

        Raises:
            ValueError: There are no targets, or their shape or dtype is wrong.
        """
        n, c = z.shape
        if y is None:
            raise ValueError(
                "labels=empirical needs targets, but the batches have none. Yield (x, y), or use labels=exact"
            )
        if not isinstance(y, Tensor):
            raise ValueError(f"targets: expected a tensor with one entry per example, got {type(y).__name__}")
        y = y.to(z.device)
        if self.loss == "cross_entropy":
            if y.dim() != 1 or len(y) != n or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
                raise ValueError(
                    f"targets of cross_entropy: expected class indices, integers of shape ({n},), got shape {tuple(y.shape)} "
                    f"and dtype {y.dtype}"
                )
            self._note(y, (y < 0) | (y >= c))
        elif self.loss == "binary_cross_entropy":
            if tuple(y.shape) not in ((n,), (n, 1)):
                raise ValueError(
                    f"targets of binary_cross_entropy: expected shape ({n},) or ({n}, 1), got {tuple(y.shape)}"
                )
            y = y.reshape(n)
            self._note(y, (y != 0) & (y != 1))
        else:
            if tuple(y.shape) != (n, c) and not (c == 1 and tuple(y.shape) == (n,)):
                raise ValueError(f"targets of mse: expected the shape of the outputs, ({n}, {c}), got {tuple(y.shape)}")
            y = y.reshape(n, c).to(z.dtype)
        return y

    def _note(self, y: Tensor, bad: Tensor) -> None:
        self.range_errors.append(torch.stack([bad.any().float(), y[bad.int().argmax()].float()]))

    def finish(self) -> None:
        """Check the ranges that were collected.

        Raises:
            ValueError: A target was out of range.
        """
        if not self.range_errors:
            return
        range_errors = torch.stack(self.range_errors).cpu()
        if not range_errors[:, 0].any():
            return
        value = range_errors[range_errors[:, 0].argmax(), 1].item()
        if self.loss == "cross_entropy":
            raise ValueError(
                f"target {value:.0f}: expected 0 to {self.classes - 1}, because there are {self.classes} outputs. "
                "Number the classes from 0 among the outputs that compete, for example in outputs=..."
            )
        raise ValueError(f"target {value:g}: expected 0 or 1 with binary_cross_entropy. Threshold the targets")
