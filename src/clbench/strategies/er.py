"""ER: experience replay."""

from __future__ import annotations

import lightning as L

from clbench.data import Batch
from clbench.learner import learner_of
from clbench.strategies.rehearsal import RehearsalStrategy, concatenate


class ER(RehearsalStrategy):
    """Experience replay (Chaudhry et al. 2019, "On tiny episodic memories"): old examples are added to every batch.

    The loss is the mean over new and old examples in one forward pass. The new batch is offered to the memory after the old
    examples are drawn. The memory is filled during training, so that ER needs no task boundaries.

    Args:
        memory, replay, buffer, seed: See ``RehearsalStrategy``.

    Raises:
        ConfigError: See ``RehearsalStrategy``.

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

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> None:
        """Return None, because old examples are forwarded together with new ones."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        super().on_train_start(trainer, pl_module)
        learner.extend = self._with_old

    def _with_old(self, batch: Batch) -> Batch:
        drawn = self.recall(len(batch.y))
        self.remember(batch)
        return batch if drawn is None else concatenate(batch, drawn[0])
