"""LwF, ER, DER, DER++, A-GEM and the references: the defining property of each, in real runs of the Learner."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial

import lightning as L
import pytest
import torch
from torch.nn.functional import cross_entropy

from clbench.data import Batch, TaskSequence, split
from clbench.data.scenario import Scenario
from clbench.data.toy import Digits
from clbench.errors import ConfigError
from clbench.learner import Learner
from clbench.nets import Net, mlp
from clbench.strategies import (
    AGEM,
    DER,
    ER,
    EWC,
    GEM,
    NCCL,
    DERpp,
    Independent,
    JointFromScratch,
    LwF,
    NearestMean,
    quadratic,
)
from clbench.strategies.agem import project
from clbench.strategies.der import squared_distance
from clbench.strategies.lwf import distance
from tests.conftest import trainer

SCENARIOS = pytest.mark.parametrize("scenario", ["task", "domain", "class"])
DATA = {"task": "permuted_digits", "class": "split_digits"}
LEARNERS = {"er": ER, "der": DER, "derpp": DERpp, "agem": AGEM, "gem": GEM, "lwf": LwF, "nearest_mean": NearestMean}


def sequence(scenario="task", tasks=3, batch_size=16, **options):
    split_in_pairs = partial(split, classes_per_task=2)
    head = "multi" if scenario == "task" else "single"
    return TaskSequence(
        Digits, split_in_pairs, tasks, Scenario(scenario, head), batch_size, scale=16.0, examples_per_task=64, **options
    )


def learner(tasks, lr=0.1, optimizer=torch.optim.SGD):
    torch.manual_seed(0)
    body = mlp(tasks.shape, (12,))
    return Learner(Net(body, tasks.scenario.build_head(12, tasks.sizes)), partial(optimizer, lr=lr))


class Watch(L.Callback):
    """Calls ``look(trainer, learner, outputs, batch)`` after every batch. It comes after the strategy in the list."""

    def __init__(self, look):
        self.look = look

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.look(trainer, pl_module, outputs, batch)


def learn(tasks, module, strategy, upto=None, watch=None, **options):
    strategy.attach(module, tasks)
    for task in list(tasks)[:upto]:
        trainer([strategy, *([Watch(watch)] if watch else [])], **options).fit(module, datamodule=task)
    return module


# --- ER ------------------------------------------------------------------------------------------------------------------


@SCENARIOS
def test_er_steps_on_the_mean_loss_of_new_and_old_examples(scenario):
    """The outputs of each example compete in the context of its own task."""
    tasks = sequence(scenario)
    module, strategy, seen = learner(tasks), ER(memory=8), []
    extend = strategy._with_old

    def record(batch):
        seen.append((batch, extend(batch), deepcopy(module.net)))
        return seen[-1][1]

    strategy._with_old = record
    losses = []
    learn(tasks, module, strategy, watch=lambda t, m, outputs, b: losses.append(outputs["loss"]))
    assert len(seen[0][1].y) == 16  # the memory is still empty
    for (new, both, net), loss in zip(seen[1:], losses[1:], strict=True):
        assert len(both.y) == 2 * len(new.y)
        assert torch.equal(both.x[:16], new.x)
        contexts = both.task.tolist() if isinstance(both.task, torch.Tensor) else [both.task] * len(both.y)
        each = [cross_entropy(net(x[None], k), y[None]) for x, y, k in zip(both.x, both.y, contexts, strict=True)]
        torch.testing.assert_close(loss, torch.stack(each).mean(), rtol=1e-4, atol=1e-6)
    if scenario == "task":
        assert set(seen[-1][1].task.tolist()) == {0, 1, 2}


def test_er_keeps_memory_times_tasks_examples():
    """The ring buffer keeps the last examples of each task."""
    tasks = sequence()
    reservoir, ring = ER(memory=8), ER(memory=8, buffer="ring")
    for strategy in (reservoir, ring):
        learn(tasks, learner(tasks), strategy, max_epochs=2)
    assert reservoir.memory.filled.sum() == ring.memory.filled.sum() == 24
    assert ring.memory.examples["task"].bincount().tolist() == [8, 8, 8]
    assert reservoir.memory.examples["task"].unique().tolist() == [0, 1, 2]
    assert reservoir.cost()["bytes"] == 24 * (64 * 4 + 8 + 8)


def test_each_run_and_task_draws_other_examples_from_its_memory():
    tasks, seeds = sequence("domain"), set()
    for strategy in (ER(memory=8), ER(memory=8, seed=1)):
        learn(tasks, learner(tasks), strategy, watch=lambda *_, er=strategy: seeds.add(er._generator.initial_seed()))
    assert len(seeds) == 2 * 3


# --- DER -----------------------------------------------------------------------------------------------------------------


@SCENARIOS
@pytest.mark.parametrize("make", [DER, DERpp])
def test_kept_outputs_are_never_refreshed(make, scenario):
    """They are the outputs of the step in which the example was stored."""
    tasks = sequence(scenario)
    strategy, module, kept = make(memory=8), learner(tasks), {}

    class Before(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with torch.no_grad():
                z = pl_module.net(batch.x, 2 if scenario == "class" else batch.task)
            kept.update({x.numpy().tobytes(): row for x, row in zip(batch.x, z, strict=True)})

    strategy.attach(module, tasks)
    for task in tasks:
        trainer([Before(), strategy]).fit(module, datamodule=task)
    filled = strategy.memory.filled
    for x, stored in zip(
        strategy.memory.examples["x"][filled], strategy.memory.examples["outputs"][filled], strict=True
    ):
        torch.testing.assert_close(stored, kept[x.numpy().tobytes()])
    assert stored.shape == ((6,) if scenario == "class" else (2,))


def test_the_distance_to_kept_outputs_is_over_what_was_kept_only():
    z = torch.tensor([[1.0, 2.0, 3.0], [0.0, -math.inf, 0.0]], requires_grad=True)
    kept = torch.tensor([[0.0, 0.0, math.nan, math.nan], [3.0, math.nan, 4.0, math.nan]])
    distance = squared_distance(z, kept)
    assert distance.item() == (1 + 4 + 9 + 16) / 2
    distance.backward()
    assert torch.equal(z.grad, torch.tensor([[1.0, 2.0, 0.0], [-3.0, 0.0, -4.0]]))


def test_outputs_that_a_smaller_task_lacks_have_no_distance():
    tasks = TaskSequence(Digits, partial(split, classes_per_task=[2, 3]), 2, Scenario("task"), 16, scale=16.0)
    strategy = DER(memory=8)
    module = learn(tasks, learner(tasks), strategy)
    missing = strategy.memory.examples["outputs"].isnan().sum(1)
    assert torch.equal(missing, (strategy.memory.examples["task"] == 0).long()) and missing.any()
    assert all(p.isfinite().all() for p in module.parameters())


@SCENARIOS
def test_derpp_is_der_with_a_label_loss_on_another_draw(scenario):
    """Each term uses its own draw: alpha times the distance of outputs, beta times the loss on labels."""
    tasks, parts, label_samples, nets = sequence(scenario), [], [], []
    strategy = DERpp(alpha=0.3, beta=0.7, memory=8)
    recall, module = strategy.recall, learner(tasks)
    net = deepcopy(module.net)

    def record(number, among=None):
        label_samples.append(recall(number, among))
        nets.append(deepcopy(module.net.state_dict()))
        return label_samples[-1]

    strategy.recall = record
    learn(tasks, module, strategy, watch=lambda t, m, o, b: parts.append((t.datamodule.index, dict(o))))
    assert list(parts[0][1]) == ["loss", "task_loss", "dark", "replay"]
    assert parts[0][1]["replay"] == parts[0][1]["dark"] == 0
    pairs = list(zip(label_samples[::2], label_samples[1::2], nets[::2], strict=True))
    assert any(not torch.equal(dark[0].x, replay[0].x) for dark, replay, _ in pairs[1:])
    for (index, p), (dark, replay, weights) in list(zip(parts, pairs, strict=True))[1:]:
        net.load_state_dict(weights)
        batch, rows = dark
        z = net(batch.x, 2 if scenario == "class" else batch.task)  # all columns, also those of later classes
        each = [
            (row[~kept.isnan()] - kept[~kept.isnan()]).square().sum()
            for row, kept in zip(z, rows["outputs"], strict=True)
        ]
        torch.testing.assert_close(p["dark"], 0.3 * torch.stack(each).mean())
        batch, _ = replay
        expected = 0.7 * cross_entropy(net(batch.x, batch.task if scenario == "task" else index), batch.y)
        torch.testing.assert_close(p["replay"], expected)
        torch.testing.assert_close(p["loss"], p["task_loss"] + p["replay"] + p["dark"])


# --- A-GEM ---------------------------------------------------------------------------------------------------------------


def test_a_projected_gradient_is_never_against_the_reference():
    """A gradient that is not against the reference is not changed."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        g, r = (
            [torch.randn(shape, generator=generator, dtype=torch.double) for shape in ((3, 4), (5,))] for _ in range(2)
        )
        before = [t.clone() for t in g]
        dot = sum((a * b).sum() for a, b in zip(g, r, strict=True))
        project(g, r)
        after = sum((a * b).sum() for a, b in zip(g, r, strict=True))
        if dot >= 0:
            assert all(map(torch.equal, g, before))
        else:
            assert abs(after) < 1e-12
            square = sum(b.square().sum() for b in r)
            for a, b, reference in zip(g, before, r, strict=True):
                torch.testing.assert_close(a, b - dot / square * reference)


@pytest.mark.parametrize("size", [1e-30, 1e-23, 1e-21, 1e20])
def test_the_projection_does_not_depend_on_the_reference_norm(size):
    """The square of the reference underflows or overflows in float32, as for stored examples that are learned very well."""
    g, r = torch.tensor([-1.0, 2.0, 0.5]), torch.tensor([1.0, 0.25, -0.5])
    scaled, plain = [g.clone()], [g.clone()]
    assert project(scaled, [r * size])
    assert project(plain, [r])
    torch.testing.assert_close(scaled, plain)


def test_a_reference_of_zeros_changes_no_gradient():
    gradient = torch.tensor([1.0, -2.0])
    assert not project([gradient], [torch.zeros(2)])
    assert gradient.tolist() == [1, -2]


def test_agem_moves_heads_of_earlier_tasks_only_by_projection():
    """Steps without a projection leave these heads unchanged."""
    tasks = sequence("task")
    decaying = partial(torch.optim.SGD, weight_decay=0.1)
    module, strategy, moved, projected = learner(tasks, 0.1, decaying), AGEM(memory=8), [], []

    class Around(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.before = [head.weight.clone() for head in pl_module.net.head.heads]
            projected.append(pl_module.net.head.heads[0].weight.grad is not None)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            now = pl_module.net.head.heads[0].weight
            moved.append(not torch.equal(now, self.before[0]))

    strategy.attach(module, tasks)
    for task in tasks:
        trainer([strategy, Around()], max_epochs=3).fit(module, datamodule=task)
    assert moved == projected
    assert 0 < sum(moved[12:]) < len(moved[12:])


def test_agem_takes_both_gradients_in_the_precision_of_the_run():
    tasks = sequence("domain", 2)
    module, types = learner(tasks), []
    module.net.body[-2].register_forward_hook(lambda part, args, out: types.append((part.training, out.dtype)))
    learn(tasks, module, AGEM(memory=8), precision="bf16-mixed")
    assert {kind for training, kind in types if training} == {torch.bfloat16}


@SCENARIOS
def test_agem_never_steps_against_the_gradient_of_its_memory(scenario):
    tasks, seen = sequence(scenario), []
    module, strategy = learner(tasks), AGEM(memory=8)

    class Look(L.Callback):
        """Runs after the strategy's hook and sees the gradient that the optimiser will use."""

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.datamodule.index == 0:
                return
            memory = strategy.memory
            rows = {
                name: t[memory.slots_before(trainer.datamodule.index) & memory.filled]
                for name, t in memory.examples.items()
            }
            context = rows["task"] if scenario == "task" else trainer.datamodule.index
            with torch.enable_grad():
                loss = cross_entropy(pl_module.net(rows["x"], context), rows["y"])
                params = list(pl_module.parameters())
                reference = torch.autograd.grad(loss, params, allow_unused=True)
            pairs = [
                (p.grad, r) for p, r in zip(params, reference, strict=True) if r is not None and p.grad is not None
            ]
            seen.append((sum((g * r).sum() for g, r in pairs) / sum(r.square().sum() for _, r in pairs)).item())

    strategy.attach(module, tasks)
    for task in tasks:
        trainer([strategy, Look()], max_epochs=3).fit(module, datamodule=task)
    assert len(seen) == 2 * 3 * 4
    assert min(seen) > -1e-4
    assert any(abs(dot) < 1e-4 for dot in seen)  # some steps were projected


# --- LwF -----------------------------------------------------------------------------------------------------------------


@SCENARIOS
def test_distillation_and_its_gradient_are_zero_at_a_task_start(scenario):
    tasks, strategy, seen = sequence(scenario), LwF(lam=3.0), []
    module = learner(tasks)

    class First(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.datamodule.index == 0 or batch_idx:
                return
            outputs = pl_module.net(batch.x, batch.task)
            term = pl_module.terms["distillation"](batch, outputs)
            grads = torch.autograd.grad(term, list(pl_module.parameters()), allow_unused=True)
            seen.append((term.item(), max(g.abs().max().item() for g in grads if g is not None)))

    later = []
    for task in tasks:
        watch = Watch(lambda t, m, o, b: later.append(o.get("distillation")))
        trainer([strategy, First(), watch]).fit(module, datamodule=task)
    assert len(seen) == 2
    for value, gradient in seen:
        assert abs(value) < 1e-6
        assert gradient < 1e-6
    assert later[0] is None
    assert later[-1] > 1e-4
    assert not module.net.body._forward_hooks


def test_the_old_outputs_are_those_of_old_classes_in_eval_mode():
    """Class-incremental: the newest task has no old columns, and the old net uses neither dropout nor batch statistics."""
    tasks, strategy, seen = sequence("class"), LwF(lam=2.0), []
    torch.manual_seed(0)
    body = mlp(tasks.shape, (12,), batch_norm=True, dropout=0.5)
    module = Learner(Net(body, tasks.scenario.build_head(12, tasks.sizes)), partial(torch.optim.SGD, lr=0.1))
    before = []

    class Start(L.Callback):
        def on_train_start(self, trainer, pl_module):
            before.append(deepcopy(pl_module.net).eval())

    def check(t, pl_module, outputs, batch):
        if t.datamodule.index == 2:
            old = before[-1](batch.x, 1).detach()
            assert old.isfinite().sum(1).tolist() == [4] * len(batch.y)
            z = pl_module.net.head(strategy.features.last, 1)
            torch.testing.assert_close(pl_module.terms["distillation"](batch, z), 2.0 * distance(z, old, 2.0))
            seen.append(batch)

    for task in tasks:
        trainer([Start(), strategy, Watch(check)]).fit(module, datamodule=task)
    assert seen


def test_the_distillation_is_over_every_old_head():
    """It is computed at temperature T."""
    generator = torch.Generator().manual_seed(0)
    z, target = (torch.randn(5, 3, generator=generator, dtype=torch.double) for _ in range(2))
    p, q = (target / 2).softmax(1), (z / 2).softmax(1)
    torch.testing.assert_close(distance(z, target, 2.0), (p * (p / q).log()).sum(1).mean())
    tasks, strategy, module, seen = sequence(), LwF(lam=2.0), None, []
    module = learner(tasks)

    def check(t, pl_module, outputs, batch):
        if t.datamodule.index == 2 and t.global_step == 2:
            seen.append(batch)
            old, features = strategy.old, pl_module.net.body(batch.x)
            expected = sum(distance(pl_module.net.head(features, k), old(batch.x, k), 2.0) for k in (0, 1))
            torch.testing.assert_close(pl_module.terms["distillation"](batch, outputs["loss"]), 2.0 * expected)

    learn(tasks, module, strategy, watch=check)
    assert seen


# --- references ----------------------------------------------------------------------------------------------------------


def test_joint_from_scratch_trains_from_the_first_weights(run):
    """It learns all tasks so far after every task."""
    tasks, starts, examples = sequence(), [], []
    module, strategy = learner(tasks), JointFromScratch()
    first = {name: p.detach().clone() for name, p in module.named_parameters()}

    class Start(L.Callback):
        def on_train_start(self, trainer, pl_module):
            starts.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})
            examples.append(trainer.datamodule.examples)

    strategy.attach(module, tasks)
    for index in range(3):
        trainer([strategy, Start()]).fit(module, datamodule=strategy.training_data(tasks, index))
    assert examples == [64, 128, 192]
    for start in starts:
        assert all(torch.equal(start[name], first[name]) for name in first)


def test_joint_from_scratch_resets_the_optimizer_moments():
    tasks, moments = sequence(), []
    module, strategy = learner(tasks, 0.01, torch.optim.Adam), JointFromScratch()
    module.reset_optimizer = False

    class Start(L.Callback):
        def on_train_start(self, trainer, pl_module):
            moments.append(len(trainer.optimizers[0].state))

    strategy.attach(module, tasks)
    for index in range(2):
        trainer([strategy, Start()]).fit(module, datamodule=strategy.training_data(tasks, index))
    assert moments == [0, 0]


def test_independent_forgets_nothing_and_its_nets_share_nothing(run, tmp_path):
    metrics = run("strategy=independent", "data=split_digits", "epochs=2")
    r = torch.tensor(metrics["accuracy_matrix"])
    for j in range(len(r)):
        assert (r[j:, j] == r[j, j]).all()
    assert metrics["forgetting"] == metrics["backward_transfer"] == 0
    each = metrics["importance"][0]["bytes"]
    assert [cost["bytes"] for cost in metrics["importance"]] == [each * n for n in range(1, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy=independent", "scenario=class", "data=split_digits"], "scenario=class: expected task or domain"),
        (["strategy=independent", "bn=freeze_after_first"], "Use bn=train"),
        (["strategy=joint_from_scratch", "bn=freeze_after_first"], "Use bn=train"),
        (["strategy=ewc", "memory=10"], "has no option memory"),
    ],
)
def test_a_wrong_option_is_named_before_training(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run(*options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ER(memory=0), "^memory=0: expected an integer >= 1, got 0.$"),
        (lambda: ER(memory=None), "memory=None: expected an integer >= 1"),
        (lambda: ER(memory=True), "memory=True: expected an integer >= 1"),
        (lambda: ER(seed=-1), "^seed=-1: expected an integer >= 0"),
        (lambda: AGEM(replay=None), "^replay=None: expected an integer >= 1, got None. The paper uses 256.$"),
        (lambda: ER(replay=0), "^replay=0: expected an integer >= 1 or None"),
        (lambda: ER(buffer="stack"), "expected one of reservoir, ring"),
        (lambda: DER(alpha=-1), "^alpha=-1"),
        (lambda: DERpp(beta=math.nan), "^beta=nan"),
        (lambda: LwF(lam=-1), "lam=-1"),
        (lambda: LwF(temperature=0), "^temperature=0: expected a finite number > 0"),
        (lambda: LwF(temperature=math.inf), "^temperature=inf: expected a finite number > 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# --- all -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_rehearsal_beats_fine_tuning_clearly(run, scenario):
    options = (f"scenario={scenario}", f"data={DATA[scenario]}", "data.tasks=5", "epochs=4")
    plain = run("strategy=finetune", *options, folder="plain")
    for name in ("er", "der", "derpp", "agem", "gem"):
        kept = run(f"strategy={name}", *options, folder=name)
        gain = kept["average_accuracy"] - plain["average_accuracy"]
        assert gain > (0.1 if scenario == "class" and name in ("er", "derpp") else 0.04), name


@pytest.mark.parametrize("name", LEARNERS)
def test_another_module_than_learner_is_refused_with_a_remedy(name):
    with pytest.raises(ConfigError, match=r"clbench\.learner\.Learner"):
        LEARNERS[name]().setup(trainer([]), L.LightningModule(), "fit")


@pytest.mark.parametrize("name", LEARNERS)
def test_the_learner_is_as_before_when_a_fit_has_ended(name):
    tasks = sequence()
    module = learner(tasks)
    learn(tasks, module, LEARNERS[name]())
    assert module.terms == {}
    assert module.extend is None
    assert module.update is None


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (DER(memory=8), 16),
        (DER(memory=2), 6),  # a reservoir is shared by all tasks
        (DER(memory=2, buffer="ring"), 2),
        (DER(memory=2, memory_fill="end"), 2),
        (DER(memory=8, replay=3), 3),
        (ER(memory=2), None),
        (GEM(memory=7), 7),
        (GEM(memory=50, replay=9), 9),
        (NCCL(memory=50, replay=9), 9),
        (NCCL(memory=7, replay=9), 7),
        (NCCL(memory=50, replay=64), 16),
        (NCCL(rehearsal=False), None),
    ],
)
def test_the_smallest_replay_batch_is_known_before_training(strategy, expected):
    assert strategy.smallest_replay_batch(batch_size=16, tasks=3) == expected


def test_the_replay_batch_may_have_another_size_than_the_batch():
    tasks, sizes = sequence(), []
    strategy = ER(memory=20, replay=5)
    module = learner(tasks)
    learn(tasks, module, strategy, watch=lambda t, m, o, b: sizes.append(len(strategy.recall(16)[0].y)))
    assert set(sizes) == {5}
    batch = Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), 0)
    assert isinstance(batch.task, int)


@pytest.mark.parametrize("name", LEARNERS)
def test_an_interrupted_fit_leaves_the_learner_clean(name):
    class Stop(L.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("stopped")

    tasks = sequence()
    module, strategy = learner(tasks), LEARNERS[name]()
    trainer([strategy]).fit(module, datamodule=tasks[0])
    with pytest.raises(RuntimeError, match="stopped"):
        trainer([strategy, Stop()]).fit(module, datamodule=tasks[1])
    assert (module.terms, module.extend, module.update, module.automatic_optimization) == ({}, None, None, True)
    assert not module.net.body._forward_hooks


@pytest.mark.parametrize("name", [*LEARNERS, "joint_from_scratch", "independent"])
def test_evaluation_with_a_strategy_callback_changes_nothing(name):
    class Evaluated(Learner):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    tasks = sequence()
    strategy = {**LEARNERS, "joint_from_scratch": JointFromScratch, "independent": Independent}[name]()
    torch.manual_seed(0)
    body = mlp(tasks.shape, (12,))
    module = Evaluated(Net(body, tasks.scenario.build_head(12, tasks.sizes)), partial(torch.optim.SGD, lr=0.1))
    trainer([strategy]).fit(module, datamodule=tasks[0])
    before = {key: value.clone() for key, value in module.state_dict().items()}
    trainer([strategy]).validate(module, dataloaders=[[torch.zeros(1)]], verbose=False)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["er", "der", "derpp", "agem", "gem", "nccl"])
def test_an_optimizer_with_several_losses_a_step_is_refused(name):
    """The strategy draws from its memory each time the loss is computed."""
    tasks = sequence()
    strategy = NCCL() if name == "nccl" else LEARNERS[name]()
    with pytest.raises(
        ConfigError, match=f"LBFGS computes the loss several times .*, but {type(strategy).__name__} draws"
    ):
        learn(tasks, learner(tasks, optimizer=torch.optim.LBFGS), strategy)


@pytest.mark.parametrize("name", ["er", "der", "derpp", "agem", "gem", "nccl"])
def test_mixed_data_of_several_tasks_cannot_be_stored(name):
    tasks = sequence()
    strategy = NCCL() if name == "nccl" else LEARNERS[name]()
    with pytest.raises(ConfigError, match=r"Fit sequence\[1\], not sequence\.joint\(1\)"):
        trainer([strategy]).fit(learner(tasks), datamodule=tasks.joint(1))


def test_a_strategy_resets_its_state_for_another_sequence():
    first, second = sequence("class", tasks=2), sequence("class", tasks=3)
    strategy = ER(memory=8)
    for tasks in (first, second):
        module = learner(tasks)
        for task in tasks:
            trainer([strategy]).fit(module, datamodule=task)
    assert strategy.memory.slots == 24
    penalised = EWC()
    penalised.penalty, penalised.seconds = quadratic.quadratic({}, {}), 3.0
    penalised.attach(module, second)
    assert (penalised.penalty, penalised.seconds) == (None, 0.0)


def test_a_memory_is_restored_before_a_fit_from_a_copied_state():
    """Training does not change the state that was saved."""
    tasks = sequence()
    strategy, module = ER(memory=8), learner(tasks)
    trainer([strategy]).fit(module, datamodule=tasks[0])
    state = strategy.state_dict()
    kept = state["rows"]["x"].clone()
    again = ER(memory=8)
    again.load_state_dict(state)
    trainer([again]).fit(module, datamodule=tasks[1])
    assert torch.equal(state["rows"]["x"], kept)
    assert 0 in again.memory.examples["task"][again.memory.filled].tolist()


def test_independent_as_a_callback_alone_has_a_net_per_task():
    tasks = sequence()
    strategy, module = Independent(), learner(tasks)
    for task in tasks:
        trainer([strategy]).fit(module, datamodule=task)
    assert len(module.net.nets) == 3
    weights = [net.body[1].weight for net in module.net.nets]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
