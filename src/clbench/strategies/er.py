"""ER: experience replay."""

from __future__ import annotations

from typing import Unpack

import lightning as L
from torch import Tensor

from clbench.data import Batch, TaskSequence
from clbench.learner import learner_of
from clbench.strategies.loss_weights import LossWeights, check_loss_weights, refuse_compiled, weight_of_new
from clbench.strategies.rehearsal import RehearsalOptions, RehearsalStrategy, concatenate


class ER(RehearsalStrategy):
    """Experience replay (Chaudhry et al. 2019, "On tiny episodic memories"): old examples are added to every batch.

    The loss is the mean over new and old examples in one forward pass. The new batch is offered to the memory after the old
    examples are drawn. The memory is filled during training, so that ER needs no task boundaries, unless
    ``memory_fill="end"``.

    Args:
        loss_weights: Weight w of the mean loss over the new examples. That over the old ones has the weight 1 - w. ``equal``
            counts every example equally, so w is the share of the new examples. ``tasks`` is w = 1/t for t tasks so far
            (van de Ven and Tolias 2019), so the first task is learned as without a memory. A number is w, and a list has one w
            per task. A step without old examples has the loss of the new ones.
        options: The options of ``RehearsalStrategy``.

    Raises:
        ConfigError: ``loss_weights`` is out of range, or a list of another length than the number of tasks. See also
            ``RehearsalStrategy``.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0"]))
        >>> er = ER(memory=2)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[er]).fit(learner, datamodule=task)
        >>> er.memory.examples["x"].shape  # 2 examples per task
        torch.Size([4, 1, 1, 2])
    """

    learns_blurred = True

    def __init__(self, *, loss_weights: LossWeights = "equal", **options: Unpack[RehearsalOptions]) -> None:
        super().__init__(**options)
        self.loss_weights = check_loss_weights(loss_weights)
        self._weight: float | None = None
        self._number = 0  # of the new examples in the batch

    def check(self, sequence: TaskSequence) -> None:
        super().check(sequence)
        weight_of_new(self.loss_weights, 0, len(sequence))

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> None:
        """Return None, because old examples are forwarded together with new ones."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        super().on_train_start(trainer, pl_module)
        learner.extend = self._with_old
        self._weight = weight_of_new(self.loss_weights, self._index, len(self.sequence))
        if self._weight is not None:
            refuse_compiled(learner, "loss_weights: expected equal")
            learner.weigh = self._weighted

    def _with_old(self, batch: Batch) -> Batch:
        self._number = len(batch.y)
        drawn = self.recall(len(batch.y))
        self.remember(batch)
        return batch if drawn is None else concatenate(batch, drawn[0])

    def _weighted(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return w times the loss of the new examples plus 1 - w times that of the old ones, for outputs (N, ...) of both."""
        assert self._weight is not None
        n, loss = self._number, self.learner.loss
        if n == len(y):
            return loss(outputs, y)
        return self._weight * loss(outputs[:n], y[:n]) + (1 - self._weight) * loss(outputs[n:], y[n:])
