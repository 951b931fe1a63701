"""LwF: learning without forgetting, by distillation on the new task's data."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from clbench.data import Batch, TaskSequence, task_of
from clbench.learner import Learner, learner_of
from clbench.nets import Net
from clbench.params import size_in_bytes, snapshot
from clbench.strategies.argument_checks import check_positive, check_strength
from clbench.strategies.distillation import divergence, softened
from clbench.strategies.learner_strategy import Features, LearnerStrategy


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

    shares_first_task = True
    needs_labels = False
    one_process = False
    per_process = False

    def __init__(self, lam: float = 1.0, temperature: float = 2.0) -> None:
        self.lam = check_strength("lam", lam)
        self.temperature = check_positive("temperature", temperature, "Li and Hoiem have 2.")
        self.old: nn.Module | None = None
        self._loaded: dict[str, Tensor] = {}

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.old = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        task = task_of(trainer)
        if task.index == 0 or self.lam == 0:
            return
        self.net, self.logits = learner.net, learner.logits
        self.old = deepcopy(learner.net).eval().requires_grad_(False)
        if self._loaded:  # the task is one that was stopped
            self.old.load_state_dict(self._loaded)
            self._loaded = {}
        scenario = task.sequence.scenario.name
        self.contexts = {"task": range(task.index), "class": [task.index - 1], "domain": [task.index]}[scenario]
        self.features = Features(learner.net)
        learner.terms["distillation"] = self._distillation

    def _distillation(self, batch: Batch, outputs: Tensor) -> Tensor:
        assert isinstance(self.old, Net) and isinstance(self.net, Net) and self.features is not None
        with torch.no_grad():
            features = self.old.body(batch.x)
            targets = [self.old.head(features, k) for k in self.contexts]
        now = [self.net.head(self.features.last, k) for k in self.contexts]
        logits = self.logits
        parts = [distance(logits(z), logits(target), self.temperature) for z, target in zip(now, targets, strict=True)]
        return self.lam * torch.stack(parts).sum()

    def state_dict(self) -> dict[str, Any]:
        """The old net, while a task is learned with it."""
        return {} if self.old is None or self.features is None else {"old": snapshot(self.old.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict.get("old", {})

    def cost(self) -> dict[str, float]:
        kept = size_in_bytes(dict(self.old.named_parameters())) if self.old is not None else 0
        return {"examples": 0, "bytes": kept}


def distance(z: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean over examples of KL( softmax(target / T) || softmax(z / T) ), both (N, C)."""
    return divergence(z, softened(target, temperature), temperature, "batchmean")
