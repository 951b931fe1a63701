"""DER and DER++: replay of old examples with the outputs they had."""

from __future__ import annotations

import math
from typing import Any, Unpack

import lightning as L
import torch
from torch import Tensor, nn

from clbench.data import Batch
from clbench.data.targets import LABEL
from clbench.learner import learner_of
from clbench.strategies.argument_checks import check_strength
from clbench.strategies.learner_strategy import Features
from clbench.strategies.memory import Examples
from clbench.strategies.rehearsal import RehearsalOptions, RehearsalStrategy


class DEROptions(RehearsalOptions, total=False):
    """Options of ``DER`` that ``DERpp`` passes on."""

    alpha: float


class DER(RehearsalStrategy):
    """Dark experience replay (Buzzega et al. 2020): old examples should keep the outputs they had when they were stored.

    The loss is task loss + alpha * mean over drawn examples of ||z(x) - z_kept||^2. z are the outputs of the example's own head
    or, if there is one output layer, all its columns. The latter includes the classes of later tasks, so that new classes cannot
    gain large outputs on old examples. z_kept are the outputs of the training pass, before its step, and are never updated. With
    ``memory_fill="end"`` they are the outputs of the trained net in evaluation mode. The authors' code also averages over the C
    outputs, so their alpha is C times ours.

    Args:
        alpha: Strength of the distance, >= 0.
        options: The options of ``RehearsalStrategy``.

    Raises:
        ConfigError: ``alpha`` is negative or not finite. See also ``RehearsalStrategy``.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> der = DER(alpha=0.1, memory=2)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[der]).fit(learner, datamodule=task)
        >>> der.memory.examples["outputs"].shape  # 2 examples per task, 2 outputs
        torch.Size([4, 2])
    """

    per_process = False
    kinds = (LABEL,)

    def __init__(self, alpha: float = 0.1, **options: Unpack[RehearsalOptions]) -> None:
        super().__init__(**options)
        self.alpha = check_strength("alpha", alpha)
        self._outputs: Tensor

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        super().on_train_start(trainer, pl_module)
        learner.terms["dark"] = self._distance
        if self.sequence.scenario.name == "class":
            self.features = Features(learner.net)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.remember(batch, outputs=self._outputs)

    def more(self, batch: Batch) -> Examples:
        return {"outputs": self._outputs_to_keep(self.learner.net(batch.x, batch.task))}

    def _distance(self, batch: Batch, outputs: Tensor) -> Tensor:
        self._outputs = self._outputs_to_keep(outputs)
        drawn = self.recall(len(batch.y))
        if drawn is None:
            return outputs.new_zeros(())
        old, examples = drawn
        newest = len(self.sequence) - 1  # every class competes in the context of the last task
        z = self.learner.net(old.x, old.task if self.features is None else newest)
        return self.alpha * squared_distance(z, examples["outputs"])

    def _outputs_to_keep(self, outputs: Tensor) -> Tensor:
        """Return the outputs (N, C) of the batch as (N, W), where W is the largest width of a task. Missing outputs are nan."""
        sequence = self.sequence
        if self.features is not None:
            head: nn.Module = self.learner.net.head  # type: ignore[assignment]
            outputs = head(self.features.last, len(sequence) - 1)
            return outputs.detach().float()
        width = max(stop - start for start, stop in sequence.scenario.slices(sequence.sizes))
        return nn.functional.pad(outputs.detach().float(), (0, width - outputs.shape[1]), value=math.nan)


class DERpp(DER):
    """DER++ (Buzzega et al. 2020): DER plus ``beta`` times the loss on the labels of a second draw of old examples.

    Args:
        beta: Strength of the loss on old labels, >= 0.
        options: ``alpha``, and the options of ``RehearsalStrategy``.

    Raises:
        ConfigError: ``alpha`` or ``beta`` is negative or not finite. See also ``RehearsalStrategy``.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> derpp = DERpp(beta=0.5, alpha=0.1, memory=2)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[derpp]).fit(learner, datamodule=task)
        >>> sorted(derpp.memory.examples)
        ['outputs', 'task', 'x', 'y']
    """

    def __init__(self, beta: float = 0.5, **options: Unpack[DEROptions]) -> None:
        super().__init__(**options)
        self.beta = check_strength("beta", beta)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        super().on_train_start(trainer, pl_module)
        learner.terms["replay"] = self._replay

    def _replay(self, batch: Batch, outputs: Tensor) -> Tensor:
        drawn = self.recall(len(batch.y))
        if drawn is None:
            return outputs.new_zeros(())
        old, _ = drawn
        return self.beta * self.learner.loss(self.learner.net(old.x, old.task), old.y)


def squared_distance(z: Tensor, kept: Tensor) -> Tensor:
    """Return the mean over examples of ||z - kept||^2 over the outputs that were kept.

    Args:
        z: Outputs (N, C).
        kept: Kept outputs (N, W), nan where there was none.
    """
    kept = kept[:, : z.shape[1]]
    return torch.where(kept.isnan(), 0.0, z - kept).square().sum(1).mean()
