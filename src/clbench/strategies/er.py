"""ER: experience replay."""

from __future__ import annotations

import lightning as L

from clbench.data import Batch
from clbench.learner import learner_of
from clbench.strategies.rehearsal import RehearsalStrategy, together


class ER(RehearsalStrategy):
    """Experience replay (Chaudhry et al. 2019, "On tiny episodic memories"): every batch with as many old examples.

    The loss is the mean over the union of the two, of one forward pass; the batch that came is offered to the memory
    after the draw.

    Args:
        memory, replay, buffer, seed: see ``RehearsalStrategy``, whose constructor it is.
    """

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> None:
        """Old examples go through the net together with new ones."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        super().on_train_start(trainer, pl_module)
        learner.extend = self._with_old

    def _with_old(self, batch: Batch) -> Batch:
        recalled = self.recall(len(batch.y))
        self.remember(batch)
        return batch if recalled is None else together(batch, recalled[0])
