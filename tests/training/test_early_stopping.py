"""Early stopping and the best weights, with losses that are known in advance."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch.nn.functional import cross_entropy

from clbench.training.early_stopping import EarlyStopping
from tests.conftest import trainer
from tests.strategies.test_baselines import learner, sequence


class Logits(L.Callback):
    """Sets the logit of label 0 after each epoch and all other weights to 0. The loss increases with a logit above 2."""

    def __init__(self, logits):
        self.logits = logits

    def on_train_epoch_end(self, trainer, pl_module):
        with torch.no_grad():
            for p in pl_module.parameters():
                p.zero_()
            pl_module.net.head.linear.bias[0] = self.logits[trainer.current_epoch]


def learned(stopping, *logits):
    """Train a task for each list of logits. Return the numbers of epochs, the logits at the end and the best losses."""
    tasks = sequence("domain", len(logits), validation=0.3)
    module, epochs, ends, best = learner(tasks), [], [], []
    for task, each in zip(tasks, logits, strict=True):
        t = trainer([Logits(each), stopping], max_epochs=len(each))
        t.fit(module, datamodule=task)
        epochs.append(t.current_epoch)
        ends.append(module.net.head.linear.bias[0].item())
        best.append(stopping.best)
    labels = [torch.cat([batch.y for batch in task.val_dataloader()[task.index]]) for task in tasks]
    for loss, each, y, number in zip(best, logits, labels, epochs, strict=True):
        expected = cross_entropy(torch.tensor([[min(each[:number]), 0.0]]).expand(len(y), 2), y)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
    return epochs, ends


@pytest.mark.parametrize(
    ("patience", "logits", "epochs"),
    [
        (1, [[5, 6, 4]], [2]),
        (2, [[5, 4, 4.5, 3, 3.5, 3.75, 2]], [6]),  # an improvement starts the count again
        (3, [[5, 6, 7, 4]], [4]),
        (2, [[5, 5, 5, 4]], [3]),  # an equal loss is not lower
        (1, [[2, 3, 2], [6, 5, 5.5, 4]], [2, 3]),  # each task has its own best loss
    ],
    ids=str,
)
def test_a_task_ends_after_patience_epochs_without_a_lower_loss(patience, logits, epochs):
    assert learned(EarlyStopping(patience), *logits) == (
        epochs,
        [each[n - 1] for each, n in zip(logits, epochs, strict=True)],
    )


def test_the_weights_with_the_lowest_loss_in_their_task_are_kept():
    logits = [5, 3, 4], [6, 4, 5]
    assert learned(EarlyStopping(consolidate="best"), *logits) == ([3, 3], [3, 4])
    assert learned(EarlyStopping(patience=5), *logits) == ([3, 3], [4, 5])
