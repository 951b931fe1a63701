"""Confidence interval of a mean over seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit


def half_width(std: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
    """Return the half-width of the 95 % Student t interval of a mean, t(0.975, n-1) * std / sqrt(n), nan for n < 2.

    Args:
        std: Sample standard deviation, with the denominator n-1.
        n: Number of values.

    >>> half_width(0.02, 5).round(4).item()
    0.0248
    """
    std, n = np.asarray(std, float), np.asarray(n, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 1, stdtrit(np.maximum(n - 1, 1), 0.975) * std / np.sqrt(n), np.nan)
