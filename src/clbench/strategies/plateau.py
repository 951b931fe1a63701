"""Plateau: finds the moments of a stream at which the loss is low and steady after it was high."""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev
from typing import Any

from clbench.strategies.argument_checks import check_integer, check_positive


class Plateau:
    """Detector of plateaus of a loss (Aljundi, Kelchtermans and Tuytelaars 2019, "Task-free continual learning", CVPR).

    mu and sigma are the mean and the standard deviation of the last ``window`` losses. A plateau is reached if

        mu < mean  and  sigma < deviation  and  there was a peak since the last plateau.

    There is a peak when mu > mu_old + sigma_old, with the values of mu and sigma at the last plateau. The first plateau needs no
    peak. The authors' code compares the variance, not the standard deviation, with its threshold.

    Args:
        window: Number of losses, at least 2. The authors' code uses 5.
        mean: Threshold delta_mu of the mean, > 0, in units of the loss. The authors' code uses 0.2.
        deviation: Threshold delta_sigma of the standard deviation, > 0, in units of the loss.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> plateau = Plateau(window=2, mean=0.2, deviation=0.1)
        >>> [plateau.update(loss) for loss in (0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1)]
        [False, False, True, False, False, False, True]
    """

    def __init__(self, window: int = 5, mean: float = 0.2, deviation: float = 0.1) -> None:
        self.window = check_integer("window", window, least=2)
        self.mean = check_positive("mean", mean)
        self.deviation = check_positive("deviation", deviation)
        self.reset()

    def __str__(self) -> str:
        return "plateau"

    def reset(self) -> None:
        """Forget all losses."""
        self._losses: deque[float] = deque(maxlen=self.window)
        self._is_after_peak = True
        self._highest = float("inf")  # mu_old + sigma_old of the last plateau

    def update(self, loss: float) -> bool:
        """Add the loss of a batch and return whether a plateau is reached with it."""
        self._losses.append(loss)
        if len(self._losses) < self.window:
            return False
        mu, sigma = fmean(self._losses), pstdev(self._losses)
        self._is_after_peak = self._is_after_peak or mu > self._highest
        is_reached = self._is_after_peak and mu < self.mean and sigma < self.deviation
        if is_reached:
            self._is_after_peak, self._highest = False, mu + sigma
        return is_reached

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "is_after_peak": self._is_after_peak, "highest": self._highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = deque(state["losses"], maxlen=self.window)
        self._is_after_peak, self._highest = state["is_after_peak"], state["highest"]
