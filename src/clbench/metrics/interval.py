"""How sure a mean over seeds is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit


def half_width(std: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
    """Half of the 95 % Student interval of a mean: t(0.975, n-1) * std / sqrt(n), std with n-1; nan for n < 2."""
    std, n = np.asarray(std, float), np.asarray(n, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 1, stdtrit(np.maximum(n - 1, 1), 0.975) * std / np.sqrt(n), np.nan)
