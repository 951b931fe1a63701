"""One output with the binary cross-entropy, and the values that a step returns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.importance import fisher
from clbench.learner import Learner, learner_outputs
from clbench.training.measures import LOSS, measured
from tests.conftest import trainer

BITS = ("data=bit_ops", "data.tasks=2", "loss=binary_cross_entropy", "net.hidden=[8]", "epochs=5")


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_one_logit_per_task_equals_two_outputs_0_and_z(run, composed, scenario):
    """It is learned and evaluated in the same way."""
    metrics = run(*BITS, f"scenario={scenario}", "strategy=joint", "epochs=200")
    assert metrics["learning_accuracy"] > 0.7
    _, learner, _ = build(composed(*BITS, f"scenario={scenario}"))
    heads = learner.net.head.heads if scenario == "task" else [learner.net.head.linear]
    assert all(head.out_features == 1 for head in heads)


def test_accuracy_nll_and_calibration_are_those_of_the_bernoulli(composed):
    sequence, learner, _ = build(composed(*BITS))
    found = measured(learner, sequence[0].test_dataloader())[0]
    (batch,) = sequence[0].test_dataloader()[0]
    z, y = learner.eval()(batch.x, batch.task)[:, 0].detach(), batch.y
    assert found.value() == ((z > 0).long() == y).double().mean()
    torch.testing.assert_close(
        found.sums[LOSS], F.binary_cross_entropy_with_logits(z, y.float(), reduction="sum").double()
    )
    torch.testing.assert_close(learner.logits(z[:, None]).softmax(1)[:, 1], z.sigmoid())


def test_ewc_measures_the_bernoulli_fisher(composed):
    sequence, learner, ewc = build(composed(*BITS, "strategy=ewc"))
    trainer([ewc]).fit(learner, datamodule=sequence[0])
    (batch,) = sequence[0].importance_dataloader()
    p = learner(batch.x, 0).sigmoid().detach()[:, 0]
    features = learner.net.body(batch.x).detach()
    expected = ((p * (1 - p))[:, None] * features.square()).mean(0)
    torch.testing.assert_close(ewc.penalty.importance["net.head.heads.0.weight"][0], expected)
    whole = fisher(learner, [batch], loss="binary_cross_entropy", outputs=learner_outputs)
    for name, f in whole.items():
        torch.testing.assert_close(ewc.penalty.importance[name], f)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy=finetune", "loss=hinge"], "loss=hinge: expected one of"),
        (["strategy=finetune", "loss=binary_cross_entropy"], "expected two classes in every task"),
        ([*BITS, "scenario=class"], "got .* classes and scenario=class. Try loss=cross_entropy."),
    ],
)
def test_an_invalid_loss_is_named(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run(*options)


def test_a_net_of_several_outputs_has_no_binary_cross_entropy():
    learner = Learner(torch.nn.Identity(), torch.optim.SGD, loss="binary_cross_entropy")
    with pytest.raises(ConfigError, match="but the net has 2"):
        learner.loss(torch.zeros(3, 2), torch.zeros(3))
