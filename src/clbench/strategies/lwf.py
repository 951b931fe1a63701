"""LwF: learning without forgetting, by distillation on the new task's data."""

from __future__ import annotations

import math
from copy import deepcopy

import lightning as L
import torch
from torch import Tensor, nn

from clbench.data import Batch, TaskSequence
from clbench.errors import ConfigError
from clbench.learner import Learner, in_two_columns
from clbench.nets import Net
from clbench.params import size_in_bytes
from clbench.strategies.learner_strategy import Features, LearnerStrategy, strength


class LwF(LearnerStrategy):
    """Learning without forgetting (Li and Hoiem 2016): the old outputs on new data should stay what they were.

    loss + lam * sum over old outputs of KL( softmax(z_old / T) || softmax(z / T) ), mean over examples, where z_old are the
    outputs of the net as it was before the task, in evaluation mode. The paper writes the cross-entropy of the two, which
    has the same gradient. Old outputs are the heads of all earlier tasks (task-incremental), the columns of the classes
    seen before (class-incremental), or the shared outputs (domain-incremental). The paper's warm-up of a new head with
    everything else frozen is left out. Keeps one copy of the net.

    Args:
        lam: strength, >= 0; lambda_o in the paper, which has 1.
        temperature: T, > 0; the paper has 2.

    Raises:
        ConfigError: a value outside its range; when a fit begins, a net that has no body and head.
    """

    def __init__(self, lam: float = 1.0, temperature: float = 2.0) -> None:
        self.lam = strength("lam", lam)
        if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
            raise ConfigError(
                f"strategy.temperature={temperature}: a temperature is a number above 0; Li and Hoiem have 2"
            )
        self.temperature = temperature
        self.old: nn.Module | None = None

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.old = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Learner) -> None:
        task = trainer.datamodule
        if task.index == 0 or self.lam == 0:
            return
        self.net = pl_module.net
        self.old = deepcopy(pl_module.net).eval().requires_grad_(False)
        scenario = task.sequence.scenario.name
        self.contexts = {"task": range(task.index), "class": [task.index - 1], "domain": [task.index]}[scenario]
        self.features = Features(pl_module.net)
        pl_module.terms["distillation"] = self._distillation

    def _distillation(self, batch: Batch, outputs: Tensor) -> Tensor:
        assert isinstance(self.old, Net) and isinstance(self.net, Net) and self.features is not None
        with torch.no_grad():
            features = self.old.body(batch.x)
            targets = [self.old.head(features, k) for k in self.contexts]
        now = [self.net.head(self.features.last, k) for k in self.contexts]
        parts = [distance(z, target, self.temperature) for z, target in zip(now, targets, strict=True)]
        return self.lam * torch.stack(parts).sum()

    def cost(self) -> dict[str, int]:
        kept = size_in_bytes(dict(self.old.named_parameters())) if self.old is not None else 0
        return {"examples": 0, "bytes": kept}


def distance(z: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean over examples of KL( softmax(target / T) || softmax(z / T) ), both (N, C)."""
    q, p = (in_two_columns(t / temperature).log_softmax(1) for t in (z, target))
    return nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
