"""Gradients at the outputs: for each example, the columns v for which the squares of J^T v add up to its Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.params import in_float64


class OutputGradients(NamedTuple):
    """The gradients at the outputs that are sent backward through the module.

    Attributes:
        count: Maps the number of outputs C to the number of columns K.
        columns: Yields K columns, each (N, C), for outputs z (N, C) and targets y (N,) or None.
    """

    count: Callable[[int], int]
    columns: Callable[[Tensor, Tensor | None], Iterator[Tensor]]


def multinomial_factor(z: Tensor) -> Iterator[Tensor]:
    """Yield the columns l_k of the Cholesky factor of diag(p) - p p^T with p = softmax(z).

    There are C - 1 columns (N, C), because the last one is zero. With the tail sums q_k = p_k + ... + p_{C-1} (zero-based;
    Tanabe and Sagae 1992, J. R. Stat. Soc. B 54(1), "exact Cholesky decomposition of the covariance of the multinomial
    distribution"):

        l_k[k] = sqrt(p_k q_{k+1} / q_k),     l_k[i] = -p_i sqrt(p_k / (q_k q_{k+1})) for i > k,     l_k[i] = 0 for i < k.

    They are computed in log space, so that no division by an underflowed probability occurs. The Fisher of softmax outputs,
    sum_y p_y (J^T (e_y - p))^2, is the diagonal of J^T (diag(p) - p p^T) J and therefore sum_k (J^T l_k)^2. This takes one
    backward pass fewer than there are classes.
    """
    logp = F.log_softmax(z, 1)
    tails = logp.flip(1).logcumsumexp(1).flip(1)
    for k in range(z.shape[1] - 1):
        column = torch.zeros_like(logp)
        column[:, k] = (0.5 * (logp[:, k] + tails[:, k + 1] - tails[:, k])).exp()
        rest = 0.5 * (logp[:, k] - tails[:, k] - tails[:, k + 1])
        column[:, k + 1 :] = -(logp[:, k + 1 :] + rest[:, None]).exp()
        yield column.masked_fill_(z == -torch.inf, 0.0)  # masked outputs, where -inf - -inf is nan


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of -log softmax(z)[y] at the outputs, softmax(z) - e_y; (N, C), (N,) -> (N, C)."""
    return z.softmax(1) - (y[:, None] == torch.arange(z.shape[1], device=z.device)).to(z.dtype)


def binary_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the Bernoulli -log p(y) at the logit, sigmoid(z) - y; (N, 1), (N,) -> (N, 1)."""
    return z.sigmoid() - y[:, None].to(z.dtype)


def bernoulli_deviation(z: Tensor) -> Tensor:
    """Return sqrt(p (1 - p)) with p = sigmoid(z), finite even if p underflows; (N, 1) -> (N, 1)."""
    return (0.5 * (F.logsigmoid(z) + F.logsigmoid(-z))).exp()


def mse(z: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of mean_c (z - y)^2 at the outputs, 2/C (z - y); (N, C), (N, C) -> (N, C)."""
    return 2 / z.shape[1] * (z - y)


def inverse_cdf(z: Tensor, u: Tensor) -> Tensor:
    """Return labels drawn from softmax(z) with uniforms u in [0, 1); (N, C), (N,) -> (N,)."""
    cumulative = in_float64(z).softmax(1).cumsum(1)
    return (cumulative[:, :-1] <= u.to(cumulative.device)[:, None]).sum(1).to(z.device)
