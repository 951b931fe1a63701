"""MAS: importance is how much the outputs would move."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from clbench import quadratic
from clbench.errors import ConfigError
from clbench.importance import mas
from clbench.params import Params
from clbench.quadratic import Quadratic
from clbench.strategies.measured import ImportanceStrategy, Outputs
from clbench.strategies.selection import Patterns


class MAS(ImportanceStrategy):
    """Memory aware synapses (Aljundi et al. 2018): lam/2 * sum_i Omega_i (theta_i - theta*_i)^2 at the newest anchor.

    Omega is the mean over examples of |d ||outputs||^2 / d theta_i|, summed over tasks. The paper has no 1/2 in the
    penalty, so its lambda is our lam / 2.

    Args:
        lam: strength, >= 0.
        samples: number of examples; None = all.
        fisher_batch: 1 = per example (the paper); b = the gradient of the mean over b, as the authors' demo has it.
        decay: factor on the sum so far when a task is added, in [0, 1]; the paper has 1.
        outputs, seed, include, exclude: see ``ImportanceStrategy``.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(
        self,
        lam: float = 1.0,
        samples: int | None = None,
        fisher_batch: int = 1,
        decay: float = 1.0,
        outputs: Outputs | None = None,
        seed: int = 0,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> None:
        super().__init__(lam, samples, outputs, seed, include, exclude)
        if fisher_batch < 1:
            raise ConfigError(f"fisher_batch={fisher_batch}: at least 1 example; 1 is per example, as in the paper")
        if not (math.isfinite(decay) and 0 <= decay <= 1):
            raise ConfigError(f"strategy.decay={decay}: the decay of MAS is in [0, 1]")
        self.fisher_batch = fisher_batch
        self.decay = float(decay)

    def measure(self, module: nn.Module, batches: Iterable[Any], outputs: Outputs, samples: int | None) -> Params:
        return mas(module, batches, samples=samples, fisher_batch=self.fisher_batch, seed=self.seed, outputs=outputs)

    def merge(self, old: Quadratic, new: Quadratic) -> Quadratic:
        return quadratic.recentre(old, new, self.decay)
