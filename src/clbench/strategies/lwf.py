"""LwF: learning without forgetting, by distillation on the data of the new task."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from clbench.data import Batch, TaskSequence, task_of
from clbench.data.targets import LABEL
from clbench.learner import Learner, learner_of
from clbench.nets import Net
from clbench.params import size_in_bytes, snapshot
from clbench.strategies.argument_checks import check_positive, check_strength
from clbench.strategies.distillation import divergence, soften
from clbench.strategies.learner_strategy import Features, LearnerStrategy


class LwF(LearnerStrategy):
    """Learning without forgetting (Li and Hoiem 2016): the old outputs on new data should not change.

    The loss is task loss + lam * sum over old outputs of KL( softmax(z_old / T) || softmax(z / T) ), averaged over examples.
    z_old are the outputs, in evaluation mode, of the net as it was before the task. The paper uses the cross-entropy of the two
    distributions, which has the same gradient. Old outputs are the heads of all earlier tasks (task-incremental), the columns of
    the classes seen before (class-incremental) or the shared outputs (domain-incremental). The paper first trains a new head with
    everything else frozen; this warm-up is left out. One copy of the net is kept.

    Args:
        lam: Strength of the distillation, >= 0. The paper calls it lambda_o and uses 1.
        temperature: Temperature T, > 0. The paper uses 2.

    Raises:
        ConfigError: A value is out of range. When a fit starts, the net is not a body with a head.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> lwf = LwF(lam=1.0)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[lwf]).fit(learner, datamodule=task)
        >>> sum(p.numel() for p in lwf.old.parameters()) == sum(p.numel() for p in learner.parameters())
        True
    """

    shares_first_task = True
    needs_labels = False
    one_process = False
    per_process = False
    kinds = (LABEL,)

    def __init__(self, lam: float = 1.0, temperature: float = 2.0) -> None:
        self.lam = check_strength("lam", lam)
        self.temperature = check_positive("temperature", temperature, "Li and Hoiem use 2.")
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
        if self._loaded:  # the task is resumed
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
        """Return the old net during a task, else an empty dict."""
        return {} if self.old is None or self.features is None else {"old": snapshot(self.old.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict.get("old", {})

    def cost(self) -> dict[str, float]:
        kept = size_in_bytes(dict(self.old.named_parameters())) if self.old is not None else 0
        return {"examples": 0, "bytes": kept}


def distance(z: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the mean over examples of KL( softmax(target / T) || softmax(z / T) ), both (N, C)."""
    return divergence(z, soften(target, temperature), temperature, "batchmean")
