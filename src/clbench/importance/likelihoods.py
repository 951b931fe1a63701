"""The distributions p(y | z) that belong to the losses: their scores at true, likely, drawn and at all labels.

The outputs of an example are arranged as P positions of C numbers, z (N, P, C), with a label for each position, y (N, P). Labels
are independent given z, so log p is a sum over the positions. A score is the gradient of -log p at z.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.importance.positions import Positions
from clbench.params import in_float64


class Likelihood(ABC):
    """A distribution of labels given outputs."""

    name: str
    range: str
    """The targets that are possible, for an error message."""

    has_classes = False
    """Whether a dimension of the outputs contains the classes. Otherwise each output is a position of its own."""

    is_mean = False
    """Whether the loss of an example is by definition the mean over its outputs. Then no target means that it is ignored."""

    @abstractmethod
    def columns(self, positions: int, classes: int) -> int:
        """Return the number of columns of ``exact`` for outputs (N, P, C)."""

    @abstractmethod
    def score(self, p: Positions, y: Tensor) -> Tensor:
        """Return the scores at labels ``y`` (N, P), with the shape of the outputs (N, P, C)."""

    @abstractmethod
    def sampled(self, p: Positions, u: Tensor) -> Tensor:
        """Return the scores at labels that uniforms ``u`` (N, P) in [0, 1) draw from the distribution."""

    @abstractmethod
    def predicted(self, p: Positions) -> Tensor:
        """Return the most probable labels, (N, P)."""

    @abstractmethod
    def exact(self, p: Positions) -> Iterator[Tensor]:
        """Yield the columns of a factor of the covariance of the score, one position after another."""

    @abstractmethod
    def losses(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each position, (N, P)."""

    def misfit(self, y: Tensor, shape: torch.Size) -> str | None:
        """Return what is expected of targets for positions of this shape, None if ``y`` fits."""
        fits = len(y) == shape[0] and [s for s in y.shape[1:] if s != 1] == [s for s in shape[1:] if s != 1]
        return None if fits else f"the shape of the outputs, {tuple(shape)}"

    @abstractmethod
    def is_outside(self, y: Tensor, classes: int) -> Tensor:
        """Return which targets ``y`` (N, P) are not possible."""


def at_position(column: Tensor, t: int, z: Tensor) -> Tensor:
    """Return zeros like ``z`` (N, P, C) with ``column`` (N, C) at position ``t``."""
    if z.shape[1] == 1:
        return column[:, None]
    placed = torch.zeros_like(z)
    placed[:, t] = column
    return placed


class Categorical(Likelihood):
    """Softmax over C classes at each position, the distribution of ``cross_entropy``."""

    name = "cross_entropy"
    range = (
        "0 to {last}, because there are {classes} outputs. Number the classes from 0 among the outputs that compete, for example "
        "in outputs=..."
    )
    has_classes = True

    def columns(self, positions: int, classes: int) -> int:
        return positions * (classes - 1)

    def score(self, p: Positions, y: Tensor) -> Tensor:
        """softmax(z) - e_y."""
        return p.z.softmax(-1) - (y[..., None] == torch.arange(p.z.shape[-1], device=p.z.device)).to(p.z.dtype)

    def sampled(self, p: Positions, u: Tensor) -> Tensor:
        return self.score(p, inverse_cdf(p.z, u))

    def predicted(self, p: Positions) -> Tensor:
        return p.z.argmax(-1)

    def exact(self, p: Positions) -> Iterator[Tensor]:
        for t in range(p.z.shape[1]):
            yield from (at_position(column, t, p.z) for column in multinomial_factor(p.z[:, t]))

    def misfit(self, y: Tensor, shape: torch.Size) -> str | None:
        is_integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        return None if is_integer and y.shape == shape else f"class indices, integers of shape {tuple(shape)}"

    def losses(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.movedim(-1, 1), y.clamp(0, z.shape[-1] - 1), reduction="none")

    def is_outside(self, y: Tensor, classes: int) -> Tensor:
        return (y < 0) | (y >= classes)


class Bernoulli(Likelihood):
    """One independent label 0 or 1 for each output, the distribution of ``binary_cross_entropy``."""

    name, range = "binary_cross_entropy", "0 or 1. Threshold the targets"

    def columns(self, positions: int, classes: int) -> int:
        return positions * classes

    def score(self, p: Positions, y: Tensor) -> Tensor:
        """sigmoid(z) - y."""
        return p.z.sigmoid() - y[..., None].to(p.z.dtype)

    def sampled(self, p: Positions, u: Tensor) -> Tensor:
        return self.score(p, (u < in_float64(p.z[..., 0]).sigmoid()).to(p.z.device))

    def predicted(self, p: Positions) -> Tensor:
        return p.z[..., 0] > 0

    def exact(self, p: Positions) -> Iterator[Tensor]:
        deviation = bernoulli_deviation(p.z)
        yield from (at_position(deviation[:, t], t, p.z) for t in range(p.z.shape[1]))

    def losses(self, z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z[..., 0], y.to(z.dtype), reduction="none")

    def is_outside(self, y: Tensor, classes: int) -> Tensor:
        return (y != 0) & (y != 1)


class Gaussian(Likelihood):
    """The distribution of ``mse``. The loss mean_e (z_e - y_e)^2 over E outputs is -log p for the variance E / 2."""

    name, range = "mse", "finite numbers"
    is_mean = True

    def columns(self, positions: int, classes: int) -> int:
        return positions * classes

    def score(self, p: Positions, y: Tensor) -> Tensor:
        """2 / E (z - y)."""
        return 2 / p.number() * (p.z - y[..., None].to(p.z.dtype))

    def sampled(self, p: Positions, u: Tensor) -> Tensor:
        """2 / E times a residual of variance E / 2."""
        normal: Tensor = torch.special.ndtri(u.clamp(min=1e-300))[..., None].to(p.z)
        return (2 / p.number()) ** 0.5 * normal

    def predicted(self, p: Positions) -> Tensor:
        raise ValueError("the most probable value of a Gaussian is its mean, where the score is zero")

    def exact(self, p: Positions) -> Iterator[Tensor]:
        deviation = (2 / p.number()) ** 0.5 * torch.ones_like(p.z)
        yield from (at_position(deviation[:, t], t, p.z) for t in range(p.z.shape[1]))

    def losses(self, z: Tensor, y: Tensor) -> Tensor:
        return (z[..., 0] - y).square()

    def is_outside(self, y: Tensor, classes: int) -> Tensor:
        return ~y.isfinite()


def multinomial_factor(z: Tensor) -> Iterator[Tensor]:
    """Yield the columns l_k of the Cholesky factor of diag(p) - p p^T with p = softmax(z), for outputs z (N, C).

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


def bernoulli_deviation(z: Tensor) -> Tensor:
    """Return sqrt(p (1 - p)) with p = sigmoid(z), finite even if p underflows."""
    return (0.5 * (F.logsigmoid(z) + F.logsigmoid(-z))).exp()


def inverse_cdf(z: Tensor, u: Tensor) -> Tensor:
    """Return labels drawn from softmax(z) with uniforms u in [0, 1); (..., C), (...) -> (...)."""
    cumulative = in_float64(z).softmax(-1).cumsum(-1)
    return (cumulative[..., :-1] <= u.to(cumulative.device)[..., None]).sum(-1).to(z.device)


LIKELIHOODS: dict[str, Likelihood] = {kind.name: kind() for kind in (Categorical, Bernoulli, Gaussian)}
"""The distributions by the names of their losses."""
