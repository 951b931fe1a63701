"""Every strategy learns every kind of targets, or refuses it in one line before training."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from clbench.config.options import conf_dir
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.learner import learner_outputs
from clbench.strategies import EWC, MAS
from tests.conftest import trainer

SMALL = {
    "labels": ("data=two_digits", "net.hidden=[8]", "data.tasks=2"),
    "numbers": ("data=digit_mass", "net.hidden=[8]", "data.tasks=2"),
    "positions": ("data=digit_masks", "net.channels=[4]", "data.source.styles=[plain,inverted]"),
    "tokens": (
        *("data=text_domains", "net.width=8", "net.layers=1", "net.heads=1", "data.source.domains=[sums,source]"),
        *("data.source.length=8", "data.source.train_bytes=640", "data.source.test_bytes=160"),
    ),
}
QUALITY = {
    "labels": ("mean_average_precision", "higher"),
    "numbers": ("mse", "lower"),
    "positions": ("mean_iou", "higher"),
    "tokens": ("bits_per_byte", "lower"),
}
STRATEGIES = sorted(file.stem for file in (conf_dir() / "strategy").glob("*.yaml"))
ONLY_ONE_LABEL = {"lwf", "der", "derpp", "nccl", "er_ace", "ewc_dr", "icarl", "nearest_mean"}
SHORT = ("steps=3", "batch_size=8", "eval_every=2", "threads=1")


@pytest.mark.parametrize("scenario", [pytest.param("task", marks=pytest.mark.slow), "domain"])
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_works_or_refuses(run, tmp_path, strategy: str, kind: str, scenario: str) -> None:
    command = (*SMALL[kind], *SHORT, f"strategy={strategy}", f"scenario={scenario}", "checkpoints=last")
    if strategy in ONLY_ONE_LABEL:
        with pytest.raises(ConfigError, match="expected one label per example, got"):
            run(*command)
        return
    if strategy == "ewc_lora" and kind == "positions":  # adapters are for linear layers
        with pytest.raises(ConfigError, match="expected a body with layers of the class torch.nn.Linear, got none"):
            run(*command)
        return
    metrics = run(*command)
    written = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert written["quality"] == dict(zip(("name", "direction"), QUALITY[kind], strict=True))
    r = torch.tensor(written["quality_matrix"], dtype=torch.double)
    assert r.shape == (2, 2) and r.isfinite().all() and "accuracy_matrix" not in written
    worse = (r[1, 0] - r[0, 0]).item() * (1 if QUALITY[kind][1] == "lower" else -1)
    assert metrics["forgetting"] == pytest.approx(worse, abs=1e-9)
    assert [each["quality"] for each in written["per_task"]] == written["quality_matrix"][1]
    assert all(len(inside["quality"]) == 2 for inside in written["within_tasks"])


@pytest.mark.parametrize("kind", SMALL)
def test_a_stopped_run_of_other_targets_resumes_identically(run, tmp_path, kind: str) -> None:
    command = (*SMALL[kind], "steps=3", "batch_size=8", "strategy=ewc", "scenario=domain", "threads=1")
    whole = run(*command, folder="whole")
    run(*command, "stop_after_task=1", folder="parts")
    assert run(*command, folder="parts")["quality_matrix"] == whole["quality_matrix"]


def reference(learner: Any, batch: Any, loss: str) -> dict[str, Tensor]:
    """Return the mean over examples of the squared gradient of the summed loss of an example."""
    total: dict[str, Tensor] = {}
    parameters = dict(learner.named_parameters())
    for n in range(len(batch.y)):
        z, y = learner(batch.x[n : n + 1], batch.task), batch.y[n : n + 1]
        terms = {"mse": 1, "binary_cross_entropy": y.numel(), "cross_entropy": y.numel()}[loss]
        gradients = torch.autograd.grad(learner.loss(z, y) * terms, list(parameters.values()), allow_unused=True)
        for name, g in zip(parameters, gradients, strict=True):
            total[name] = total.get(name, 0) + (torch.zeros_like(parameters[name]) if g is None else g.square())
    return {name: value / len(batch.y) for name, value in total.items()}


@pytest.mark.parametrize("kind", SMALL)
def test_the_empirical_fisher_is_a_loop_over_examples(composed, kind: str) -> None:
    """For tokens with as many positions as outputs too, where the shape alone is ambiguous."""
    cfg = composed(*SMALL[kind], "scenario=domain", "batch_size=6")
    sequence, learner, _ = build(cfg)
    if kind == "tokens":
        learner.net.head.slices, learner.net.head.is_shared = ((0, 8),) * 2, True
    learner = learner.double()
    batch = next(iter(sequence[0].train_dataloader()))
    x = batch.x.double() if batch.x.is_floating_point() else batch.x
    batch = batch._replace(x=x, y=batch.y % 8 if kind == "tokens" else batch.y)
    strategy = EWC(lam=1.0, fisher="empirical", loss=cfg.loss)
    found = strategy.measure(learner, [batch], learner_outputs, None)
    expected = reference(learner, batch, cfg.loss)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("kind", ["labels", "numbers", "positions"])
def test_the_exact_fisher_is_the_mean_of_sampled_ones(composed, kind: str) -> None:
    sequence, learner, _ = build(composed(*SMALL[kind], "scenario=domain", "batch_size=4"))
    batch, loss = next(iter(sequence[0].train_dataloader())), composed(*SMALL[kind]).loss
    exact = EWC(lam=1.0, fisher="exact", loss=loss).measure(learner, [batch], learner_outputs, None)
    many = EWC(lam=1.0, fisher="sample", label_samples=300, loss=loss).measure(learner, [batch], learner_outputs, None)
    for name, value in exact.items():
        torch.testing.assert_close(many[name].sum(), value.sum(), rtol=0.1, atol=1e-6)


def test_mas_measures_the_outputs_of_all_positions(composed) -> None:
    sequence, learner, _ = build(composed(*SMALL["tokens"], "scenario=domain", "batch_size=4"))
    learner = learner.double()
    batch = next(iter(sequence[0].train_dataloader()))
    found = MAS(lam=1.0).measure(learner, [batch], learner_outputs, None)
    weight, total = learner.net.head.linear.weight, 0
    for x in batch.x:
        (g,) = torch.autograd.grad(learner(x[None], 0).square().sum(), weight)
        total = total + g.abs()
    torch.testing.assert_close(found["net.head.linear.weight"], total / 4, rtol=1e-8, atol=1e-12)


def test_losses_that_disagree_are_refused(composed) -> None:
    cfg = composed(*SMALL["numbers"], "scenario=domain", "threads=1")
    sequence, learner, _ = build(cfg)
    with pytest.raises(ConfigError, match="loss=cross_entropy: expected mse, the loss of the Learner"):
        trainer([EWC(lam=1.0)]).fit(learner, datamodule=sequence[0])
    learner.loss_name = "cross_entropy"
    with pytest.raises(ConfigError, match="expected the loss of the TaskSequence, whose targets are numbers"):
        trainer([]).fit(learner, datamodule=sequence[0])


def test_a_token_beyond_the_vocabulary_is_refused(run) -> None:
    with pytest.raises(ConfigError, match="index out of range.*The inputs are tokens from 0 to .* a larger vocabulary"):
        run(*SMALL["tokens"], "net.vocabulary=50", "scenario=domain")
