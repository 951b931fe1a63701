"""ER-ACE: new examples compete over the classes of their batch, and examples of the memory over all classes seen."""

from __future__ import annotations

import pytest
import torch

from clbench import ER, ERACE
from clbench.errors import ConfigError
from clbench.experiment.build import build
from tests.conftest import trainer

CLASSES = (
    "data=split_digits",
    "scenario=class",
    "data.validation=0",
    "data.tasks=3",
    "data.split.classes_per_task=[3,3,4]",
)


def slow_loss(outputs, y, n):
    """Return the mean over examples of the loss, example by example, in float64."""
    total = 0.0
    for i, (z, label) in enumerate(zip(outputs.double(), y.tolist(), strict=True)):
        classes = sorted(set(y[:n].tolist())) if i < n else range(outputs.shape[1])
        total += sum(torch.exp(z[c]) for c in classes).log() - z[label]
    return total / len(y)


@pytest.mark.parametrize("options", [{}, {"replay": 3}, {"loss_weights": 0.5}])
def test_the_loss_is_that_of_a_loop_over_examples(composed, options):
    """In batches of 4, which lack classes of their task."""
    sequence, learner, _ = build(composed(*CLASSES, "batch_size=4"))
    strategy, steps = ERACE(memory=10, **options), []

    def compare(outputs, y, loss=strategy._asymmetric):
        n, value = strategy._number, loss(outputs, y)
        expected = slow_loss(outputs, y, n)
        if "loss_weights" in options and n < len(y):
            old = slow_loss(outputs[n:], y[n:], 0)
            new = (expected * len(y) - old * (len(y) - n)) / n
            expected = 0.5 * new + 0.5 * old
        steps.append((value.item(), expected.item(), len(set(y[:n].tolist())), len(y) - n))
        return value

    strategy._asymmetric = compare
    for task in sequence:
        trainer([strategy], max_steps=10).fit(learner, datamodule=task)
    assert len(steps) == 30
    for found, expected, *_ in steps:
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert {1, 2} <= {classes for *_, classes, _ in steps} and steps[-1][3] == options.get("replay", 4)
    assert learner.weigh is None  # the fit has ended


def test_new_examples_give_no_gradient_to_absent_classes(composed):
    sequence, learner, _ = build(composed(*CLASSES, "batch_size=6"))
    gradients = {}
    for strategy in (ER(memory=5, memory_from="earlier"), ERACE(memory=5, memory_from="earlier")):
        trainer([strategy]).fit(
            learner, datamodule=sequence[1]
        )  # nothing is replayed, because no earlier task was learned
        z = torch.zeros(4, 6, requires_grad=True)
        strategy._number = 4
        loss = strategy._asymmetric if isinstance(strategy, ERACE) else learner.loss
        (gradients[type(strategy)],) = torch.autograd.grad(loss(z, torch.tensor([3, 4, 3, 3])), z)
    assert not gradients[ERACE][:, [0, 1, 2, 5]].any() and gradients[ERACE][:, 3:5].all()
    assert gradients[ER].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("compile=true",), "ERACE: expected a loss that is not compiled, got one with compile=true"),
        (
            ("data=bit_ops", "scenario=task", "loss=binary_cross_entropy"),
            "ERACE with loss=binary_cross_entropy: expected",
        ),
        (("strategy.loss_weights=2",), "strategy.loss_weights=2: expected equal, tasks, a number in"),
    ],
)
def test_what_does_not_fit_is_refused(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run("strategy=er_ace", *CLASSES[:2], *options)
