"""Distillation: how far outputs are from what they were."""

from __future__ import annotations

import math

from torch import Tensor, nn


def softened(outputs: Tensor, temperature: float) -> Tensor:
    """softmax(outputs / temperature) of outputs (N, C)."""
    return (outputs / temperature).softmax(1)


def padded(soft: Tensor, width: int) -> Tensor:
    """(N, C) -> (N, width), nan where there is no output."""
    return nn.functional.pad(soft, (0, width - soft.shape[1]), value=math.nan)


def divergence(outputs: Tensor, soft: Tensor, temperature: float, scale: str = "mean") -> Tensor:
    """KL( soft || softmax(outputs / temperature) ) over the outputs that ``soft`` has, averaged over the examples.

    Args:
        outputs: (N, C).
        soft: (N, W), W >= C, nan where the example had no such output.
        temperature: > 0.
        scale: ``mean`` divides each example by its number of outputs, so that it is nn.KLDivLoss() where those are equal;
            ``batchmean`` does not.
    """
    soft = soft[:, : outputs.shape[1]]
    absent = soft.isnan()
    log_q = (outputs.masked_fill(absent, -math.inf) / temperature).log_softmax(1).masked_fill(absent, 0.0)
    terms = nn.functional.kl_div(log_q, soft.masked_fill(absent, 0.0), reduction="none")  # (N, C)
    if scale == "mean":
        return (terms.sum(1) / (~absent).sum(1)).mean()
    return terms.sum() / len(terms)
