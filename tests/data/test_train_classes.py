"""train_classes: the classes that compete in the training loss of a class-incremental task."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from torch.nn.functional import cross_entropy

import clbench
from clbench.config.compose import compose
from clbench.data.scenario import Scenario
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.importance import fisher
from clbench.learner import learner_outputs

SPLIT = ("data=split_digits", "scenario=class", "steps=6", "trainer=cpu", "data.validation=0")


def columns(which, task, sizes):
    """Return the first column and the last column plus one that compete for new examples."""
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    first = ends[task] - sizes[task] if which == "new" else 0
    return first, ends[-1] if which == "all" else ends[task]


class Compare(L.Callback):
    """Compares the loss of every step with the cross-entropy over the columns that compete."""

    def __init__(self, which):
        self.which, self.steps = which, 0

    def on_train_batch_start(self, trainer, learner, batch, batch_idx):
        task = trainer.datamodule
        first, end = columns(self.which, task.index, task.sequence.sizes)
        z = learner.net.head.linear(learner.net.body(batch.x))[:, first:end]
        self.expected = cross_entropy(z, batch.y - first).item()

    def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        assert outputs["task_loss"].item() == pytest.approx(self.expected, rel=1e-5)
        self.steps += 1


@pytest.mark.parametrize("which", ["new", "seen", "all"])
def test_the_training_loss_is_that_of_the_classes_that_compete(which):
    sequence, learner, strategy = build(compose([*SPLIT, "strategy=ewc", "lam=10", f"train_classes={which}"]))
    compare = Compare(which)
    for task in list(sequence)[:3]:
        callbacks = [strategy, compare]
        L.Trainer(max_steps=6, barebones=True, callbacks=callbacks).fit(learner, datamodule=task)
    assert compare.steps == 18
    after = [part.task for part in sequence.examples_of("test", 2)]
    assert set(after) == {2}  # at test time, the classes seen so far compete


@pytest.mark.parametrize("which", ["new", "seen", "all"])
def test_the_fisher_is_that_of_the_outputs_of_training(which):
    """Float64, exact, compared with a loop over the examples and the columns that compete."""
    sequence, learner, _ = build(compose([*SPLIT, "strategy=finetune", f"train_classes={which}"]))
    task = sequence[1]
    L.Trainer(max_steps=2, barebones=True).fit(learner, datamodule=task)
    learner = learner.double()
    batch = next(iter(task.train_dataloader()))
    batch = batch._replace(x=batch.x[:4].double(), y=batch.y[:4])
    first, end = columns(which, 1, sequence.sizes)
    measured = fisher(learner, [batch], outputs=learner_outputs, labels="exact")
    weight = learner.net.head.linear.weight
    expected = torch.zeros_like(weight)
    for x in batch.x:
        log_p = torch.log_softmax(learner.net.head.linear(learner.net.body(x[None]))[0, first:end], 0)
        for k in range(end - first):
            (g,) = torch.autograd.grad(log_p[k], weight, retain_graph=True)
            expected += log_p[k].exp().detach() * g.square() / 4
    torch.testing.assert_close(measured["net.head.linear.weight"], expected)


def test_replayed_examples_compete_with_all_classes_seen():
    """This is close to the loss of ER-ACE, see ``strategy=er_ace``."""
    sequence, learner, er = build(compose([*SPLIT, "strategy=er", "train_classes=new"]))
    for task in list(sequence)[:2]:
        L.Trainer(max_steps=6, barebones=True, callbacks=[er]).fit(learner, datamodule=task)
    z, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    competing = learner.competing(z, y)
    assert competing[:2].equal(z[:2])
    assert competing[2:, 2:].equal(z[2:, 2:]) and competing[2:, :2].isinf().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Scenario, "class", "single", "old"), "train_classes=old: expected one of new, seen, all"),
        (partial(Scenario, "domain", "single", "new"), "train_classes=new: expected seen with scenario=domain"),
    ],
)
def test_a_choice_without_meaning_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    "more", [["strategy=joint"], ["strategy=nccl"], ["strategy=er_ace"], ["strategy=ewc", "lam=1", "data.blur=0.1"]]
)
def test_new_classes_alone_need_batches_of_one_task(more, tmp_path):
    with pytest.raises(
        ConfigError, match="train_classes=new: expected seen or all, because .* examples of several tasks"
    ):
        clbench.run([*SPLIT, *more, "train_classes=new"], tmp_path, quiet=True)


@pytest.mark.parametrize("which", ["new", "all"])
@pytest.mark.parametrize(
    "strategy", ["ewc lam=10", "mas lam=1", "si lam=1", "lwf", "er", "der", "agem", "gem", "gpm", "finetune"]
)
def test_every_strategy_learns_with_the_choice(which, strategy, tmp_path):
    more = ["data.tasks=5", f"train_classes={which}", *f"strategy={strategy}".split()]
    found = clbench.run([*SPLIT, *more, "stop_after_task=3", "samples=null"], tmp_path, quiet=True)
    assert all(0 <= value <= 1 for value in found["accuracy_matrix"][2][:3])
