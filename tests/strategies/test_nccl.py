"""NCCL: every step compared with a slow reference, and properties that do not depend on the numbers."""

from __future__ import annotations

import csv
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy, relu
from torch.utils.data import DataLoader, TensorDataset

from clbench import NCCL
from clbench.data import TaskSequence, permute, split
from clbench.data.scenario import Scenario
from clbench.data.toy import Digits
from clbench.errors import ConfigError
from clbench.learner import Learner
from clbench.nets import Net, features_of, mlp, resnet18_reduced
from clbench.nets.calibration import calibrate, calibrated, calibration, remove
from clbench.params import snapshot
from clbench.strategies.distillation import divergence, soften
from clbench.strategies.nccl_steps import consolidation
from tests.conftest import stopped_after, trainer


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


SMALL = {"memory": 7, "replay": 9}


def sequence_of(split=permute, tasks=3, scenario="domain", **options):
    options = {"batch_size": 5, "examples_per_task": 20, "scale": 16, "validation": 0.0, **options}
    return TaskSequence(
        Digits, split, tasks, Scenario(scenario, "multi" if scenario == "task" else "single"), **options
    )


def learner_of(sequence, hidden=(6,), body=None, **options):
    torch.manual_seed(0)
    body = body or mlp(sequence.shape, hidden=hidden)
    head = sequence.scenario.build_head(features_of(body, sequence.shape), sequence.sizes)
    return Learner(Net(body, head), options.pop("optimizer", partial(torch.optim.SGD, lr=0.1)), **options)


def learn(strategy, sequence=None, learner=None, tasks=None, callbacks=(), **options):
    """Fit the tasks in turn, each with a new Trainer."""
    sequence = sequence or sequence_of()
    learner = learner or learner_of(sequence)
    for index in range(tasks or len(sequence)):
        torch.manual_seed(index)
        trainer([strategy, *callbacks], **options).fit(learner, datamodule=sequence[index])
    return learner


class Recorded(NCCL):
    """NCCL that records, for every update, the weights before and after, the batch and the drawn examples."""

    def __init__(self, **options):
        super().__init__(**{**SMALL, **options})
        self.updates = []

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.start = snapshot(dict(pl_module.net.named_parameters()))

    def update(self, batch):
        self.label_samples = []
        net = self.learner.net
        before = snapshot(dict(net.named_parameters()))
        parts = super().update(batch)
        after = snapshot(dict(net.named_parameters()))
        self.updates.append((self._index, self.start, before, batch, self.label_samples, after, parts))
        return parts

    def recall(self, number, among=None):
        recalled = super().recall(number, among)
        if recalled is not None:
            self.label_samples.append(recalled)
        return recalled


# --- the reference: the formulas of the docstring, by autograd, for an MLP 64-6-10 --------------------------------------


def outputs_of(w, x, tilde=None):
    """Return the outputs with weights ``w`` of the layers 'body.1' and 'head.linear', with ``tilde`` instead of psi * theta."""
    h = x.flatten(1)
    for name in ("body.1", "head.linear"):
        psi, scale = w.get(f"{name}.calibration.psi", 1.0), w.get(f"{name}.calibration.scale", 0.0)
        weight = psi * w[f"{name}.weight"] if tilde is None else tilde[name]
        h = (1 + scale) * (h @ weight.T + w[f"{name}.bias"])
        h = relu(h) if name == "body.1" else h
    return h


def kl_of(z, soft, s):
    q = (z / s.temperature).softmax(1)
    total = (soft * (soft.log() - q.log())).sum()
    return total / soft.numel() if s.kl == "mean" else total / len(soft)


def tilde_of(w):
    return {n: w.get(f"{n}.calibration.psi", 1.0) * w[f"{n}.weight"] for n in ("body.1", "head.linear")}


def clipped(g, largest):
    return g if largest is None else g.clamp(-largest, largest)


def reference(s, index, start, before, batch, label_samples, lr):
    """Return the weights after an update."""
    w = {name: p.clone().requires_grad_() for name, p in before.items()}
    base = [name for name in w if "calibration" not in name]
    label_samples = iter(label_samples)
    anchor = {"task": tilde_of(start), "batch": tilde_of(before)}.get(s.anchor)
    for step in range(s.inner_steps):
        if s.anchor == "last_inner" and step == s.inner_steps - 1:
            anchor = tilde_of(snapshot(w))
        x, y = batch.x, batch.y
        if step:
            again, _ = next(label_samples)
            x, y = again.x, again.y
        loss = cross_entropy(outputs_of(w, x), y)
        if index and s.gamma:
            old, rows = next(label_samples)
            z = outputs_of(w, old.x)
            loss = loss + s.gamma * (cross_entropy(z, old.y) + s.reg * kl_of(z, rows["soft"], s))
        gradients = torch.autograd.grad(loss, [w[name] for name in base])
        with torch.no_grad():
            for name, g in zip(base, gradients, strict=True):
                w[name] -= lr * clipped(g, s.inner_clip)
    for _ in range(s.outer_steps if index else 0):
        old, rows = next(label_samples)
        tilde = {n: t.detach().requires_grad_() for n, t in tilde_of(w).items()}
        fisher = torch.autograd.grad(kl_of(outputs_of(w, old.x, tilde), rows["soft"], s), list(tilde.values()))
        objective = 0.0
        if "b" in s.terms:
            objective = s.reg * kl_of(outputs_of(w, old.x), rows["soft"], s)
        if "a" in s.terms:
            now = tilde_of(w)
            for (name, a), g in zip(anchor.items(), fisher, strict=True):
                objective = objective + s.lam / 2 * (g.square() * (now[name] - a.detach()).square()).sum()
        own = [name for name in w if "calibration" in name]
        gradients = torch.autograd.grad(objective, [w[name] for name in own], allow_unused=True)
        with torch.no_grad():
            for name, g in zip(own, gradients, strict=True):
                if g is not None:
                    w[name] -= s.outer_lr * clipped(g, s.outer_clip)
    assert next(label_samples, None) is None
    return {name: p.detach() for name, p in w.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lam": 1e6},
        {"lam": 1e6, "anchor": "last_inner"},
        {"lam": 1e6, "anchor": "task"},
        {"lam": 1e6, "terms": ["a"]},
        {"terms": ["b"]},
        {"kl": "batchmean", "temperature": 2.0, "reg": 3.0},
        {"inner_clip": 0.05, "outer_clip": 0.01},
        {"outer_clip": None, "gamma": 0.5},
        {"gamma": 0.0},
        {"inner_steps": 1, "outer_steps": 3},
        {"inner_steps": 3},
        {"wcm": False},
        {"fcm": False},
        {"lam": 0.0},
    ],
    ids=str,
)
def test_every_update_equals_the_reference(options):
    strategy = Recorded(**options)
    learn(strategy, tasks=2)
    assert len(strategy.updates) == 8
    inner, gamma = strategy.inner_steps, strategy.gamma
    for (
        index,
        *_,
        label_samples,
        _,
        _,
    ) in strategy.updates:  # 7 old examples are kept; 9 are requested, then as many as a batch has
        old = [7] if index and gamma else []
        outer = [5] * strategy.outer_steps * index
        assert [len(batch.y) for batch, _ in label_samples] == [*old, *([5, *old] * (inner - 1)), *outer]
    moved = 0.0
    for index, start, before, batch, label_samples, after, _ in strategy.updates:
        expected = reference(strategy, index, start, before, batch, label_samples, lr=0.1)
        torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-13)
        moved += sum((after[n] - before[n]).abs().sum() for n in before if "calibration" in n)
    assert moved > 0 or not options.get("wcm", True) or options.get("terms") == ["a"]


def test_term_a_has_its_value_and_the_gradient_of_autograd():
    torch.manual_seed(0)
    g, theta, anchor = torch.randn(3, 4, 5)
    psi = torch.rand(4, 1, requires_grad=True)
    value = 7.0 / 2 * (g.square() * (psi * theta - anchor).square()).sum()
    (expected,) = torch.autograd.grad(value, psi)
    found, gradient = consolidation(g, (psi * theta).detach(), anchor, lam=7.0, reg=0.0)
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close((theta * gradient).sum(1, keepdim=True), expected)
    by_hand = (7.0 * g.square() * (psi.detach() * theta - anchor) * theta).sum(1, keepdim=True)
    torch.testing.assert_close(expected, by_hand)


def test_a_psi_of_zero_gives_a_finite_step():
    strategy = Recorded(lam=1e3)
    learner = learn(strategy, tasks=1)
    with torch.no_grad():
        for layer in calibrated(learner.net).values():
            layer.calibration.psi[0] = 0.0
    learn(strategy, sequence := sequence_of(), learner, tasks=2)
    assert len(sequence) == 3
    assert all(p.isfinite().all() for p in learner.parameters())


# --- what each level changes ----------------------------------------------------------------------------------------------


class Watched(NCCL):
    """Asserts that an inner or outer step does not change the other level, bit for bit."""

    steps = 0

    def _inner_step(self, *arguments):
        before = snapshot(calibration(self.learner.net))
        result = super()._inner_step(*arguments)
        assert all(torch.equal(p, before[name]) for name, p in calibration(self.learner.net).items())
        self.steps += 1
        return result

    def _outer_step(self, *arguments):
        own = calibration(self.learner.net)
        before = {n: p.clone() for n, p in self.learner.net.named_parameters() if n not in own}
        result = super()._outer_step(*arguments)
        now = dict(self.learner.net.named_parameters())
        assert all(torch.equal(now[name], p) for name, p in before.items())
        self.steps += 1
        return result


def test_inner_and_outer_steps_change_their_own_parameters_only():
    """Even if the optimiser has momentum and weight decay."""
    sequence = sequence_of()
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    strategy = Watched(**SMALL)
    learn(strategy, sequence, learner_of(sequence, optimizer=optimizer, reset_optimizer=False))
    assert strategy.steps == 3 * 4 * 3


def test_after_the_first_task_the_calibration_is_the_identity():
    learner = learn(NCCL(**SMALL), tasks=1)
    for name, p in calibration(learner.net).items():
        assert torch.equal(p, torch.full_like(p, float(name.endswith("psi"))))


def test_without_term_b_the_features_are_not_calibrated():
    """Term a does not depend on them. With term a alone, as in the published code, FCM therefore stays the identity."""
    learner = learn(NCCL(lam=1e6, terms=["a"], **SMALL))
    own = calibration(learner.net)
    assert all(p.eq(0).all() for name, p in own.items() if name.endswith("scale"))
    assert any(p.ne(1).any() for name, p in own.items() if name.endswith("psi"))


def test_at_lam_zero_there_is_no_term_a():
    a, b = learn(NCCL(lam=0.0, **SMALL)), learn(NCCL(lam=5.0, terms=["b"], **SMALL))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_without_terms_parts_or_memory_nothing_is_calibrated():
    for options in ({"terms": []}, {"wcm": False, "fcm": False}, {"rehearsal": False}):
        learner = learn(NCCL(**SMALL, **options))
        assert all(p.eq(float(name.endswith("psi"))).all() for name, p in calibration(learner.net).items())


def test_with_one_inner_step_and_no_memory_it_is_fine_tuning():
    sequence = sequence_of()
    plain = learner_of(sequence)
    for task in sequence:
        trainer([]).fit(plain, datamodule=task)
    learner = learn(NCCL(inner_steps=1, rehearsal=False), sequence)
    remove(learner.net)
    assert all(torch.equal(p, q) for p, q in zip(learner.parameters(), plain.parameters(), strict=True))


# --- the memory ----------------------------------------------------------------------------------------------------------


def test_the_ring_keeps_the_last_examples_of_each_task():
    strategy = Recorded()
    learn(strategy)
    for task in range(3):
        seen = [u[3] for u in strategy.updates if u[0] == task]
        x, y = torch.cat([b.x for b in seen])[-7:], torch.cat([b.y for b in seen])[-7:]
        mine = strategy.memory.slots_of(task)
        order = torch.arange(20 - 7, 20) % 7
        assert torch.equal(strategy.memory.examples["x"][mine][order], x)
        assert torch.equal(strategy.memory.examples["y"][mine][order], y)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_softened_outputs_are_those_of_the_end_of_a_task(scenario):
    """Later tasks do not change them."""
    strategy = NCCL(**SMALL, temperature=3.0)
    sequence = sequence_of(partial(split, classes_per_task=[2, 3, 5]) if scenario != "domain" else permute, 3, scenario)
    learner = learner_of(sequence)
    kept = {}
    for task in range(3):
        learn_one(strategy, sequence, learner, task)
        mine = strategy.memory.slots_of(task)
        with torch.no_grad():
            z = learner.eval().net(strategy.memory.examples["x"][mine], task)
        soft = strategy.memory.examples["soft"][mine]
        assert z.shape[1] == {"task": (2, 3, 5), "domain": (10, 10, 10), "class": (2, 5, 10)}[scenario][task]
        torch.testing.assert_close(soft[:, : z.shape[1]], (z / 3.0).softmax(1))
        assert soft[:, z.shape[1] :].isnan().all()
        kept[task] = soft.clone()
    for task, soft in kept.items():
        torch.testing.assert_close(
            strategy.memory.examples["soft"][strategy.memory.slots_of(task)], soft, rtol=0, atol=0, equal_nan=True
        )


def learn_one(strategy, sequence, learner, task):
    trainer([strategy]).fit(learner, datamodule=sequence[task])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_distillation_is_zero_in_eval_mode_after_a_task(batch_norm):
    """They would not be with outputs kept in train mode, where BatchNorm uses the statistics of the batch."""
    sequence = sequence_of(batch_size=10)
    learner = learner_of(sequence, body=mlp(sequence.shape, hidden=(6,), batch_norm=batch_norm))
    strategy = NCCL(**SMALL)
    learn(strategy, sequence, learner, tasks=2)
    rows = strategy.memory.draw(9, torch.Generator(), strategy.memory.slots_of(1))
    for training in (False, True):
        learner.train(training)
        kl = divergence(learner.net(rows["x"], 1), rows["soft"], strategy.temperature)
        gradients = torch.autograd.grad(kl, list(learner.parameters()))
        largest = max(g.abs().max().item() for g in gradients)
        if training and batch_norm:
            assert kl > 1e-5 and largest > 1e-4
        else:
            assert abs(kl.item()) < 1e-12 and largest < 1e-12


def test_the_divergence_equals_torch_on_the_columns_of_each_task():
    torch.manual_seed(0)
    z = torch.randn(6, 5, requires_grad=True)
    columns = [[0, 1], [0, 1, 2], [0, 1, 2, 3, 4]] * 2
    soft = torch.full((6, 7), torch.nan)
    each = []
    for i, c in enumerate(columns):
        p = torch.randn(1, len(c)).softmax(1)
        soft[i, : len(c)] = p
        gathered = z[i : i + 1].gather(1, torch.tensor([c]))
        each.append(nn.functional.kl_div((gathered / 2).log_softmax(1), p, reduction="batchmean") / len(c))
    expected, found = torch.stack(each).mean(), divergence(z, soft, 2.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (found, expected)))


def test_outputs_that_do_not_compete_give_no_nan():
    z = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    soft = torch.tensor([[0.5, 0.5, torch.nan]])
    value = divergence(z, soft, 5.0, "batchmean")
    (g,) = torch.autograd.grad(value, z)
    assert value > 0 and g.isfinite().all() and g[0, 2] == 0


def test_the_mean_of_torch_is_the_batch_mean_over_the_outputs():
    """It is the batch mean divided by the number of outputs."""
    z, soft = torch.randn(8, 5), soften(torch.randn(8, 5), 5.0)
    mean, batch_mean = (divergence(z, soft, 5.0, scale) for scale in ("mean", "batchmean"))
    torch.testing.assert_close(mean, batch_mean / 5)
    with pytest.warns(UserWarning, match="batchmean"):
        torch.testing.assert_close(mean, nn.KLDivLoss()((z / 5).log_softmax(1), soft))


def test_the_same_seed_gives_the_same_weights():
    """Another seed gives other weights."""
    a, b, c = (learn(NCCL(**SMALL, seed=seed)) for seed in (0, 0, 1))
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    other = [torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True)]
    assert all(same) and not all(other)


# --- Lightning -----------------------------------------------------------------------------------------------------------


class Counted(L.Callback):
    def __init__(self):
        self.steps, self.rates = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.steps.append(trainer.global_step)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        assert outputs["loss"].isfinite() and not outputs["loss"].requires_grad


def test_the_trainer_counts_one_step_for_each_batch():
    counted, sequence = Counted(), sequence_of()
    learn(NCCL(**SMALL, inner_steps=3, outer_steps=2), sequence, tasks=2, callbacks=[counted])
    assert counted.steps == [1, 2, 3, 4] * 2
    counted = Counted()
    learn(NCCL(**SMALL), sequence, tasks=2, callbacks=[counted], max_epochs=-1, max_steps=6)
    assert counted.steps == [1, 2, 3, 4, 5, 6] * 2


@pytest.mark.parametrize(("interval", "rates"), [("step", [0.05, 0.025] * 2), ("epoch", [0.1, 0.1, 0.05, 0.05])])
def test_a_schedule_of_the_learning_rate_is_followed(interval, rates):
    sequence, counted = sequence_of(batch_size=10, tasks=1), Counted()
    halved = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    learner = learner_of(sequence, scheduler=halved, scheduler_interval=interval)
    learn(NCCL(**SMALL), sequence, learner, callbacks=[counted], max_epochs=2)
    assert counted.rates == (rates if interval == "epoch" else [0.05, 0.025, 0.0125, 0.00625])


def test_after_a_fit_the_learner_trains_by_itself_again():
    sequence = sequence_of()
    learner = learn(NCCL(**SMALL), sequence, tasks=2)
    before = snapshot(calibration(learner.net))
    assert learner.automatic_optimization and learner.update is None
    trainer([]).fit(learner, datamodule=sequence[2])
    assert any(not torch.equal(p, before[name]) for name, p in calibration(learner.net).items())


def test_a_learner_that_is_calibrated_already_stays_calibrated():
    sequence = sequence_of()
    learner = learner_of(sequence)
    calibrate(learner.net, ["body.1"])
    learn(NCCL(**SMALL), sequence, learner, tasks=1)
    assert list(calibrated(learner.net)) == ["body.1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val=1.0.*inner_clip=..."),
    ],
)
def test_what_manual_optimisation_cannot_do_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        learn(NCCL(**SMALL), **options)


def test_what_compiles_or_scales_the_loss_is_refused():
    sequence = sequence_of()
    with pytest.raises(ConfigError, match="compile=true: expected false"):
        learn(NCCL(**SMALL), sequence, learner_of(sequence, compile=True))
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ConfigError, match="does not scale its losses. Use trainer.precision=bf16-mixed"):
        learn(NCCL(**SMALL), sequence, precision=None, plugins=[scaled])


def test_the_outer_step_is_in_train_mode():
    """As in the published code. FCM before BatchNorm therefore has no effect."""

    class Statistics(NCCL):
        moved = 0

        def _outer_step(self, *arguments):
            norm = next(part for part in self.learner.net.modules() if isinstance(part, nn.BatchNorm1d))
            assert norm.training
            before = norm.running_mean.clone()
            result = super()._outer_step(*arguments)
            self.moved += not torch.equal(norm.running_mean, before)
            return result

    sequence = sequence_of(tasks=2)
    strategy = Statistics(**SMALL)
    learn(strategy, sequence, learner_of(sequence, body=mlp(sequence.shape, hidden=(6,), batch_norm=True)))
    assert strategy.moved == 4  # once per step of the second task


def test_a_module_of_another_kind_is_refused():
    class Plain(L.LightningModule):
        def training_step(self, batch, batch_idx): ...

        def configure_optimizers(self): ...

    with pytest.raises(ConfigError, match=r"NCCL .*Plain"):
        trainer([NCCL()]).fit(Plain(), DataLoader(TensorDataset(torch.zeros(4, 2))))


def test_several_processes_are_refused():
    sequence = sequence_of()
    t = trainer([strategy := NCCL(**SMALL)], devices=2, strategy="ddp")
    t.datamodule = sequence[0]
    with pytest.raises(ConfigError, match="NCCL: expected one process, got 2"):
        strategy.setup(t, learner_of(sequence), "fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1}, "lam=-1"),
        ({"memory": 0}, "memory=0"),
        ({"replay": 0}, "^replay=0: expected an integer >= 1, got 0.$"),
        ({"inner_steps": 1.5}, "^inner_steps=1.5"),
        ({"outer_lr": 0}, "^outer_lr=0: expected a finite number > 0"),
        ({"inner_clip": -1}, "^inner_clip=-1: expected a finite number > 0, got -1. None does not clip."),
        ({"temperature": None}, "^temperature=None"),
        ({"anchor": "here"}, "^anchor=here: expected one of batch, last_inner, task, got 'here'"),
        ({"kl": "sum"}, "^kl=sum: expected one of mean, batchmean"),
        ({"terms": ["c"]}, "^terms=.*expected a list of a"),
        ({"terms": "ab"}, "^terms=ab"),
        ({"wcm": "no"}, "^wcm=no: expected True or False, got 'no'"),
        ({"fcm": None}, "^fcm=None: expected True or False"),
        ({"rehearsal": "off"}, "^rehearsal=off: expected True or False"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        NCCL(**options)


# --- which layers --------------------------------------------------------------------------------------------------------


def chosen(body, **options):
    sequence = sequence_of(tasks=2)
    learner = learner_of(sequence, body=body(sequence.shape))
    NCCL(**SMALL, **options).attach(learner, sequence)
    return list(calibrated(learner.net))


def test_the_layers_that_are_calibrated_by_default():
    """They are all layers of an MLP and the 3x3 convolutions in the blocks of a ResNet."""
    assert chosen(partial(mlp, hidden=(4, 4))) == ["body.1", "body.3", "head.linear"]
    names = chosen(partial(resnet18_reduced, width=2))
    assert len(names) == 16 and names[:3] == ["body.layer1.0.conv1", "body.layer1.0.conv2", "body.layer1.1.conv1"]


def test_patterns_choose_other_layers():
    resnet = partial(resnet18_reduced, width=2)
    assert len(chosen(resnet, include="*")) == 1 + 16 + 3 + 1
    assert chosen(resnet, include="*.head.*") == ["head.linear"]
    assert chosen(partial(mlp, hidden=(4, 4)), exclude=["*.head.*"]) == ["body.1", "body.3"]
    with pytest.raises(ConfigError, match="expected patterns that match the weight of a Linear or convolutional layer"):
        chosen(partial(mlp, hidden=(4,)), include="*.bias")
    with pytest.raises(ConfigError, match=r"include='\*.tail.\*': expected a pattern that matches a parameter"):
        chosen(partial(mlp, hidden=(4,)), include="*.tail.*")


def test_a_resnet_is_learned():
    sequence = sequence_of(tasks=2, batch_size=10)
    learner = learner_of(sequence, body=resnet18_reduced(sequence.shape, width=2))
    learn(NCCL(**SMALL), sequence, learner)
    psi = [p for name, p in calibration(learner.net).items() if name.endswith("psi")]
    assert all(p.isfinite().all() and p.ne(1).any() for p in psi)


# --- the command ---------------------------------------------------------------------------------------------------------

UNEQUAL = ("scenario=class", "data=split_digits", "data.split.classes_per_task=[2,3,5]")
SHORT = ("strategy=nccl", "steps=4", "data.tasks=3", "net.hidden=[16]", "logger=none")


@pytest.fixture
def single():
    """Uses the precision of the command."""
    torch.set_default_dtype(torch.float)


@pytest.mark.usefixtures("single")
def test_the_defaults_are_one_epoch_in_batches_of_ten_by_sgd(composed):
    cfg = composed("strategy=nccl")
    assert (cfg.epochs, cfg.batch_size, cfg.optimizer.make._target_) == (1, 10, "torch.optim.SGD")
    assert composed("strategy=nccl", "optimizer=adam", "epochs=2").optimizer.make._target_ == "torch.optim.Adam"
    assert composed("strategy=nccl", "data=split_mnist").batch_size == 10


@pytest.mark.usefixtures("single")
@pytest.mark.parametrize(
    "options",
    [
        ("scenario=task",),
        UNEQUAL,
        ("net=cnn", "scenario=domain"),
    ],
)
def test_the_command_runs_in_every_scenario(run, options):
    metrics = run(*(o for o in SHORT if not (o.startswith("net.") and "net=cnn" in options)), *options)
    assert metrics["status"] == "complete"
    assert [m["examples"] for m in metrics["importance"]] == [40, 40, 40]
    assert metrics["importance"][-1]["bytes"] > 0


@pytest.mark.usefixtures("single")
def test_the_parts_of_the_loss_are_logged(run, tmp_path):
    run(*SHORT[:-1], "logger=csv", "log_every=1")
    (file,) = (tmp_path / "run").rglob("metrics.csv")
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    names = ("task_loss", "replay", "distillation", "consolidation", "outer_distillation")
    last = [row for row in rows if row.get("train/loss")][-1]
    assert all(float(last[f"train/{name}"]) >= 0 for name in names)


@pytest.mark.usefixtures("single")
def test_a_stopped_run_resumes_bit_identical(run, tmp_path):
    whole = run(*SHORT, "net.dropout=0.3", "scenario=domain", folder="whole")
    stopped_after(0, tmp_path / "whole", tmp_path / "again")
    resumed = run(*SHORT, "net.dropout=0.3", "scenario=domain", folder="again")
    assert resumed["accuracy_matrix"] == whole["accuracy_matrix"] and resumed["per_task"] == whole["per_task"]
    a, b = (torch.load(tmp_path / name / "checkpoints/task_2.ckpt", weights_only=False) for name in ("whole", "again"))
    assert a["learner"].keys() == b["learner"].keys()
    assert any("psi" in name and value.ne(1).any() for name, value in a["learner"].items())
    assert all(torch.equal(a["learner"][name], b["learner"][name]) for name in a["learner"])
    for name, rows in a["strategy"]["rows"].items():
        assert torch.equal(rows, b["strategy"]["rows"][name])
