"""Exemplars: the choice of examples by herding, and classification by the nearest mean of features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def herding(features: Tensor, number: int, normalize_averages: bool = True) -> Tensor:
    """Return the indices of ``number`` exemplars of a class in the order of their choice (Rebuffi et al. 2017, algorithm 4).

    Exemplar k is the example x for which the mean of the exemplars is closest to the mean of the class:

        p_k = argmin_x || mu - n( phi(x) + sum_{j<k} phi(p_j) ) ||,    mu = n( sum_x phi(x) ),

    where n normalises to length 1, as the paper does with every average of features. Each example is chosen once.

    Args:
        features: Normalised features phi of the examples of the class (N, F).
        number: Number of exemplars. All examples are returned if there are fewer.
        normalize_averages: Whether n normalises. Otherwise it divides by the number of features in its sum.

    Example:
        >>> herding(torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])), number=2).tolist()
        [1, 0]
    """

    def average(sums: Tensor, number: int) -> Tensor:
        return normalize(sums, dim=-1) if normalize_averages else sums / number

    mean, total = average(features.sum(0), len(features)), torch.zeros_like(features[0])
    is_chosen = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for k in range(1, min(number, len(features)) + 1):
        distances = (mean - average(features + total, k)).square().sum(1).masked_fill(is_chosen, torch.inf)
        best = distances.argmin()
        chosen.append(best)
        is_chosen[best] = True
        total = total + features[best]
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long)


def herded(features: Tensor, classes: Tensor, number: int, normalize_averages: bool = True) -> list[Tensor]:
    """Return the indices of at most ``number`` exemplars of each class, in the order of ``classes.unique()``, on the CPU.

    Args:
        features: Normalised features (N, F).
        classes: Class of each example (N,), on the CPU.
        number: Number of exemplars per class.
        normalize_averages: See ``herding``.
    """
    rows = [(classes == each).nonzero()[:, 0] for each in classes.unique()]
    return [of[herding(features[of.to(features.device)], number, normalize_averages).cpu()] for of in rows]


def class_means(features: Tensor, classes: Tensor, number: int) -> Tensor:
    """Return the normalised mean feature of each class (number, F), nan for a class without examples.

    Args:
        features: Normalised features (N, F).
        classes: Class of each example (N,), int64.
        number: Number of classes.
    """
    sums = features.new_zeros(number, features.shape[1]).index_add(0, classes, features)
    counts = classes.bincount(minlength=number)
    return normalize(sums, dim=1).masked_fill((counts == 0)[:, None], torch.nan)


def closeness(features: Tensor, means: Tensor) -> Tensor:
    """Return the cosine of each feature and each mean (N, C), -inf for means that are nan.

    All have length 1, so the largest cosine is the smallest distance.

    Args:
        features: Normalised features (N, F).
        means: Normalised means (C, F), or for each example (N, C, F).
    """
    return (means @ features[..., None])[..., 0].nan_to_num(nan=-torch.inf)
