"""LwF: learning without forgetting, by distillation on the data of the new task."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from clbench.data import Batch, TaskSequence, task_of
from clbench.data.targets import LABEL
from clbench.errors import StrategyError
from clbench.learner import Learner, learner_of
from clbench.nets import Net
from clbench.params import size_in_bytes, snapshot
from clbench.strategies.argument_checks import Strength, check_positive, check_strength_per_task, check_tasks
from clbench.strategies.distillation import divergence, soften
from clbench.strategies.learner_strategy import Features, LearnerStrategy
from clbench.strategies.loss_weights import LossWeights, check_loss_weights, refuse_compiled, weight_of_new


class LwF(LearnerStrategy):
    """Learning without forgetting (Li and Hoiem 2016): the old outputs on new data should not change.

    The loss is task loss + lam * sum over old outputs of KL( softmax(z_old / T) || softmax(z / T) ), averaged over examples.
    z_old are the outputs, in evaluation mode, of the net as it was before the task. The paper uses the cross-entropy of the two
    distributions, which has the same gradient. Old outputs are the heads of all earlier tasks (task-incremental), the columns of
    the classes seen before (class-incremental) or the shared outputs (domain-incremental). The paper first trains a new head with
    everything else frozen; this warm-up is left out. One copy of the net is kept.

    Args:
        lam: Strength of the distillation, >= 0, or a list with one per task, of which the first has no effect. The
            paper calls it lambda_o and uses 1.
        temperature: Temperature T, > 0. The paper uses 2.
        loss_weights: Weight w of the task loss from the second task on: w * task loss + (1 - w) * lam * distillation. ``equal``
            has no weights: task loss + lam * distillation, as above. ``tasks`` is w = 1/t for t tasks so far (van de Ven and
            Tolias 2019). A number is w, and a list has one w per task, of which the first has no effect.

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

    def __init__(self, lam: Strength = 1.0, temperature: float = 2.0, loss_weights: LossWeights = "equal") -> None:
        self.lam = check_strength_per_task("lam", lam)
        self._lam_now = 0.0
        self.temperature = check_positive("temperature", temperature, "Li and Hoiem use 2.")
        self.loss_weights = check_loss_weights(loss_weights)
        later = self.lam[1:] if isinstance(self.lam, tuple) else (self.lam,)
        if self.loss_weights != "equal" and 0 in later:
            raise StrategyError(
                f"loss_weights={loss_weights} with lam=0: expected lam > 0, because there is no old loss. Use loss_weights=equal"
            )
        self.old: nn.Module | None = None
        self._loaded: dict[str, Tensor] = {}

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        self.old = None

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
        check_tasks("lam", self.lam, len(sequence))
        weight_of_new(self.loss_weights, 0, len(sequence))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.check(task_of(trainer).sequence)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        task = task_of(trainer)
        self._lam_now = self.lam[task.index] if isinstance(self.lam, tuple) else self.lam
        if task.index == 0 or self._lam_now == 0:
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
        w = weight_of_new(self.loss_weights, task.index, len(task.sequence))
        if w is not None:
            refuse_compiled(learner, "loss_weights: expected equal")
            learner.weigh = lambda outputs, y: w * learner.loss(outputs, y)
            self._lam_now *= 1 - w

    def _distillation(self, batch: Batch, outputs: Tensor) -> Tensor:
        assert isinstance(self.old, Net) and isinstance(self.net, Net) and self.features is not None
        with torch.no_grad():
            features = self.old.body(batch.x)
            targets = [self.old.head(features, k) for k in self.contexts]
        now = [self.net.head(self.features.last, k) for k in self.contexts]
        logits = self.logits
        parts = [distance(logits(z), logits(target), self.temperature) for z, target in zip(now, targets, strict=True)]
        return self._lam_now * torch.stack(parts).sum()

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
