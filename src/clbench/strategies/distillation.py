"""Distillation: the distance of outputs from earlier outputs."""

from __future__ import annotations

import math

from torch import Tensor, nn


def soften(outputs: Tensor, temperature: float) -> Tensor:
    """Return softmax(outputs / temperature) of outputs (N, C)."""
    return (outputs / temperature).softmax(1)


def pad_outputs(soft: Tensor, width: int) -> Tensor:
    """Return ``soft`` (N, C) as (N, width), nan where there is no output."""
    return nn.functional.pad(soft, (0, width - soft.shape[1]), value=math.nan)


def divergence(outputs: Tensor, soft: Tensor, temperature: float, scale: str = "mean") -> Tensor:
    """Return KL( soft || softmax(outputs / temperature) ) over the outputs of ``soft``, averaged over the examples.

    Args:
        outputs: Outputs (N, C).
        soft: Target probabilities (N, W) with W >= C, nan where the example has no such output.
        temperature: Temperature of the softmax, > 0.
        scale: ``mean`` divides the value of each example by its number of outputs. If those numbers are equal, this is
            nn.KLDivLoss(). ``batchmean`` does not divide.
    """
    soft = soft[:, : outputs.shape[1]]
    absent = soft.isnan()
    log_q = (outputs.masked_fill(absent, -math.inf) / temperature).log_softmax(1).masked_fill(absent, 0.0)
    terms = nn.functional.kl_div(log_q, soft.masked_fill(absent, 0.0), reduction="none")  # (N, C)
    if scale == "mean":
        return (terms.sum(1) / (~absent).sum(1)).mean()
    return terms.sum() / len(terms)
