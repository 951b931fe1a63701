"""Output gradients of the Fisher for each combination of its options ``labels`` and ``loss``, and checks of the targets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clbench.importance.label_options import ONE_LABEL, LabelOptions
from clbench.importance.output_gradients import Columns
from clbench.importance.outputs import Forward
from clbench.importance.positions import Positions, class_dimension, expand_mask
from clbench.params import in_float64

MOST_COLUMNS = 1000
"""Largest number of columns of ``labels="exact"``, which are backward passes."""

FEW_COLUMNS = 10
"""Number of columns for several positions up to which no message names the cost."""

log = logging.getLogger(__name__)


class FisherGradients:
    """The scores of the likelihood at the labels that the options select. Call ``finish`` after the last batch.

    Shapes and dtypes of targets are checked at once, their ranges in ``finish``, so that no batch waits for the device.

    Args:
        options: The options, with the name of a loss.
        seed: Random seed of the labels of ``labels="sample"``.
    """

    def __init__(self, options: LabelOptions, seed: int) -> None:
        assert options.likelihood is not None
        self.options, self.likelihood = options, options.likelihood
        self.generator = torch.Generator().manual_seed(seed)
        self.range_errors: list[Tensor] = []
        self.classes = self.most_columns = 0

    def __call__(self, forward: Forward) -> Columns:
        """Return the columns of a batch with outputs in float32 or wider.

        Raises:
            ValueError: The outputs or the targets do not suit the likelihood.
        """
        p = self.arrange(forward)
        self._check_cost(p.z)
        number = self.options.columns(*p.z.shape[1:])
        counts = None if p.counts is None else p.counts.any(1)
        examples = len(p.z) if counts is None else counts.sum()
        return Columns(number, examples, (p.restore(self._weighted(v, p)) for v in self._scores(p)), counts)

    def _scores(self, p: Positions) -> Iterator[Tensor]:
        if self.options.labels == "exact":
            yield from self.likelihood.exact(p)
        elif self.options.labels == "sample":
            yield from self._sampled(p)
        else:
            y = self.likelihood.predicted(p) if self.options.labels == "predicted" else p.y
            assert y is not None
            if self.options.labels == "reversed":
                p = p._replace(z=(-p.z).masked_fill(p.z == -torch.inf, -torch.inf))  # no output that is masked competes
            score = self.likelihood.score(p, y)
            if self.options.labels == "weighted":  # the square has the factor p(y)
                score = score * (-0.5 * self.likelihood.losses(p.z, y)).exp()[..., None]
            yield score

    def _sampled(self, p: Positions) -> Iterator[Tensor]:
        """Yield the scores at sampled labels, divided by sqrt(label_samples) so that their squares average.

        The generator gives a fixed number of float64 uniforms per example, in the order of the examples. The labels therefore
        do not depend on the batch size. All positions of an example are drawn at once: the square of a sum of independent
        scores with mean zero has the sum of their squares as its mean.
        """
        draws = self.options.label_samples
        n, positions, _ = p.z.shape
        u = torch.rand(n, draws, positions, generator=self.generator, dtype=torch.float64).to(
            in_float64(p.z[:0]).device
        )
        for d in range(draws):
            yield self.likelihood.sampled(p, u[:, d]) / draws**0.5

    def _weighted(self, v: Tensor, p: Positions) -> Tensor:
        """Return the scores without the positions that do not count, divided by their number if the loss is a mean."""
        if p.counts is not None:
            v = v.masked_fill(~p.counts[..., None], 0.0)
        return v / p.number() if self.options.reduction == "mean" and not self.likelihood.is_mean else v

    def arrange(self, forward: Forward) -> Positions:
        """Return the outputs and targets by position.

        Raises:
            ValueError: They do not suit the likelihood.
        """
        z, n = forward.z, len(forward.z)
        dim = class_dimension(z, forward.y, self.options.class_dim) if self.likelihood.has_classes else z.dim()
        last = z.movedim(dim, -1) if self.likelihood.has_classes else z[..., None]
        shape = last.shape[:-1]
        arranged = last.reshape(n, -1, last.shape[-1])
        if self.options.labels in ONE_LABEL and arranged.shape[1] > 1:
            raise ValueError(
                f"labels={self.options.labels} over {arranged.shape[1]} positions: expected one label per example. Use "
                "labels=empirical"
            )
        self._check_outputs(arranged)
        y = self._targets(forward.y, shape)
        counts = None if forward.mask is None else expand_mask(forward.mask.to(z.device), shape).reshape(n, -1)
        if y is not None:
            y = y.to(z.device).reshape(n, -1)
            counts = self._note_range(y, arranged.shape[-1], counts)

        def restore(v: Tensor) -> Tensor:
            return v.reshape(last.shape).movedim(-1, dim) if self.likelihood.has_classes else v.reshape(z.shape)

        return Positions(arranged, y, counts, restore)

    def _check_outputs(self, z: Tensor) -> None:
        """Raise ValueError if outputs (N, P, C) are no logits of the likelihood."""
        if not self.likelihood.has_classes or self.classes:
            return
        self.classes = z.shape[-1]
        if self.classes < 2:
            raise ValueError(
                "loss=cross_entropy over 1 output is always zero. Use loss=binary_cross_entropy for a single logit"
            )
        if _are_probabilities(z.flatten(0, 1)):
            raise ValueError(
                "the outputs are >= 0 and sum to 1, so they are probabilities, but loss=cross_entropy expects logits. Pass "
                "outputs=fn that returns the logits or the log-probabilities, such as outputs=lambda module, batch: "
                "(module(batch[0]).log(), batch[1])"
            )

    def _check_cost(self, z: Tensor) -> None:
        """Raise ValueError if there are too many columns."""
        _, positions, classes = z.shape
        number = self.options.columns(positions, classes)
        if self.options.labels == "exact" and number > MOST_COLUMNS:
            what = f"{positions} positions x {classes} classes" if classes > 1 else f"{positions} outputs"
            raise ValueError(
                f"labels=exact over {what} takes {number} backward passes: expected at most {MOST_COLUMNS}. Use "
                "labels=sample, an unbiased estimate that takes label_samples passes (1)"
            )
        if self.options.labels == "exact" and positions > 1 and number > max(self.most_columns, FEW_COLUMNS):
            self.most_columns = number
            log.warning(
                "labels=exact takes %d backward passes per batch, for %d positions. labels=sample takes label_samples (1)",
                number,
                positions,
            )

    def _targets(self, y: Any, shape: torch.Size) -> Tensor | None:
        """Return targets that have one entry per position, None if there are none and none are needed.

        Raises:
            ValueError: They are needed and missing, or their shape or dtype is wrong.
        """
        is_needed = self.options.reads_labels
        if y is None and is_needed:
            raise ValueError(
                f"labels={self.options.labels} needs targets, but the batches have none. Yield (x, y), or use labels=exact"
            )
        if not isinstance(y, Tensor):
            if is_needed:
                raise ValueError(f"targets: expected a tensor with one entry per example, got {type(y).__name__}")
            return None
        if (wanted := self.likelihood.misfit(y, shape)) is None:
            return y
        if is_needed or (len(shape) > 1 and not self.likelihood.is_mean):
            raise ValueError(
                f"targets of {self.options.loss}: expected {wanted}, got shape {tuple(y.shape)} and dtype {y.dtype}"
            )
        return None

    def _note_range(self, y: Tensor, classes: int, counts: Tensor | None) -> Tensor | None:
        """Note whether a target is outside the range, and return which positions count: those without ``ignore_index``."""
        if not self.likelihood.is_mean:
            is_used = y != self.options.ignore_index
            counts = is_used if counts is None else counts & is_used
        if self.options.reads_labels:
            outside = self.likelihood.is_outside(y, classes)
            outside = outside if counts is None else outside & counts
            bad = y.flatten()[outside.flatten().int().argmax()]
            self.range_errors.append(torch.stack([outside.any().float(), bad.float()]))
        return counts

    def mean_loss(self, forward: Forward) -> float | None:
        """Return the mean loss over the positions that count, None if the targets do not fit."""
        p = self.arrange(forward)
        if p.y is None:
            return None
        losses = self.likelihood.losses(p.z, p.y)
        return float(losses.mean() if p.counts is None else losses[p.counts].mean())

    def finish(self) -> None:
        """Check the ranges that were collected.

        Raises:
            ValueError: A target was out of range.
        """
        if not self.range_errors:
            return
        range_errors = torch.stack(self.range_errors).cpu()
        if range_errors[:, 0].any():
            value = range_errors[range_errors[:, 0].argmax(), 1].item()
            rule = self.likelihood.range.format(last=self.classes - 1, classes=self.classes)
            raise ValueError(f"target {value:g}: expected {rule}")


def _are_probabilities(z: Tensor) -> bool:
    """Return whether every row is a distribution, up to the rounding of ``z``, which may have been computed in 16 bits."""
    is_coarse = len(z) > 1 and (torch.equal(z, z.bfloat16().to(z.dtype)) or torch.equal(z, z.half().to(z.dtype)))
    return bool(((z >= 0).all() & ((z.sum(1) - 1).abs() < (1e-2 if is_coarse else 1e-4)).all()).item())
