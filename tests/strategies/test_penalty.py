"""Strategies as callbacks on LightningModules that do not know clbench."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from clbench import EWC, EWCDR, KFACEWC, L2, MAS, SI, OnlineEWC, RWalk, fisher, mas
from clbench.errors import ConfigError, Unstable
from clbench.importance import mas_local
from clbench.strategies import Strategy
from clbench.strategies.examples import examples_of_process
from clbench.strategies.quadratic import quadratic
from tests.conftest import trainer

STRATEGIES = {
    "ewc": partial(EWC, lam=10.0),
    "kfac_ewc": partial(KFACEWC, lam=10.0),
    "ewc_dr": partial(EWCDR, lam=10.0),
    "online_ewc": partial(OnlineEWC, lam=10.0, gamma=0.9),
    "mas": partial(MAS, lam=1.0),
    "l2": partial(L2, lam=0.1),
    "si": partial(SI, lam=1.0),
    "rwalk": partial(RWalk, lam=1.0),
}


class Plain(L.LightningModule):
    """A user's module with one body, one head per task and ordinary training steps."""

    def __init__(self, optimizer=torch.optim.SGD, lr=0.1, manual=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))
        self.task = 0
        self.make = partial(optimizer, lr=lr)
        self.automatic_optimization = not manual
        self.state = None

    def forward(self, x):
        return self.heads[self.task](self.body(x).tanh())

    def training_step(self, batch, batch_idx):
        loss = cross_entropy(self(batch[0]), batch[1])
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        if self.state is not None:
            optimizer.load_state_dict(self.state)
        return optimizer


def data(seed, n=32):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator))


def loader(seed, n=32, batch_size=8):
    return DataLoader(data(seed, n), batch_size=batch_size)


def learn(module, strategy, tasks=3, carry=False, **options):
    """Fit ``tasks`` tasks in turn, each with a new Trainer. The last one uses head 1."""
    for task in range(tasks):
        module.task = int(task == tasks - 1)
        t = trainer([strategy], **options)
        t.fit(module, loader(task))
        module.state = t.optimizers[0].state_dict() if carry else None
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_lam_0_is_fine_tuning_bit_for_bit(name, optimizer):
    """The module has an unused head, and the state of its optimizer is carried over to the next task."""
    strategy = STRATEGIES[name](lam=0.0)
    protected = learn(Plain(optimizer, 1e-2), strategy, carry=True)
    assert_same(protected, learn(Plain(optimizer, 1e-2), Strategy(), carry=True))


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_unused_head_does_not_move_at_zero_penalty_gradient(name):
    module = Plain(torch.optim.Adam, 1e-2)
    strategy = STRATEGIES[name]()
    first = trainer([strategy])
    first.fit(module, loader(0))
    module.state, before = first.optimizers[0].state_dict(), module.heads[0].weight.detach().clone()
    module.task = 1
    trainer([strategy]).fit(module, loader(1))
    assert torch.equal(module.heads[0].weight, before)


def test_a_parameter_without_a_gradient_is_pulled_to_its_anchor():
    module, strategy = Plain(), EWC(lam=1.0)
    trainer([strategy]).fit(module, loader(0))
    anchor = module.heads[0].weight.detach().clone()
    with torch.no_grad():
        module.heads[0].weight.add_(1.0)
    module.task = 1
    trainer([strategy], limit_train_batches=1).fit(module, loader(1))
    moved = module.heads[0].weight.detach() - (anchor + 1.0)
    expected = -0.1 * strategy_importance_before(strategy, module, anchor)
    torch.testing.assert_close(moved, expected)


def strategy_importance_before(strategy, module, anchor):
    """Return the Fisher of head 0 in the first task. The second task does not use head 0, so nothing is added."""
    return strategy.penalty.importance["heads.0.weight"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_penalty_is_zero_at_the_anchor(name):
    module, strategy = Plain().double(), STRATEGIES[name]()
    trainer([strategy], precision="64-true").fit(module, DataLoader(TensorDataset(*(doubled(data(0)))), 8))
    assert strategy.value(module).item() == 0.0


def doubled(dataset):
    x, y = dataset.tensors
    return x.double(), y


def expected_step(module, strategy, batch, lr, clip=None):
    """Return the weights after one SGD step on loss + penalty, by autograd on the sum."""
    loss = cross_entropy(module(batch[0]), batch[1]) + strategy.value(module)
    params = list(module.parameters())
    grads = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
    if clip:
        norm = torch.stack([g.norm() for g in grads]).norm()
        grads = [g * min(1.0, clip / norm.item()) for g in grads]
    return [p.detach() - lr * g for p, g in zip(params, grads, strict=True)]


def trained_and_moved(strategy, **module_options):
    """Return a module after one task, with its weights moved away from the anchor so that the penalty matters."""
    module = Plain(**module_options)
    trainer([strategy]).fit(module, loader(0))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return module


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("how", ["plain", "clipping", "accumulation", "manual"])
def test_one_step_is_the_gradient_step_of_loss_plus_penalty(name, how):
    strategy = STRATEGIES[name]()
    module = trained_and_moved(strategy, manual=how == "manual")
    batch = data(1, 8).tensors
    expected = expected_step(module, strategy, batch, 0.1, clip=0.05 if how == "clipping" else None)
    options, batches = {}, DataLoader(TensorDataset(*batch), 8)
    if how == "clipping":
        options = {"gradient_clip_val": 0.05}
    if how == "accumulation":
        options, batches = {"accumulate_grad_batches": 4}, DataLoader(TensorDataset(*batch), 2)
    trainer([strategy], **options).fit(module, batches)
    for p, e in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, atol=2e-6, rtol=1e-5)


def test_bf16_adds_the_penalty_gradient_in_full_precision():
    strategy = EWC(lam=10.0)
    module = trained_and_moved(strategy)
    plain, batch = Plain(), DataLoader(TensorDataset(*data(1, 8).tensors), 8)
    plain.load_state_dict(module.state_dict())
    penalty = torch.autograd.grad(strategy.value(module), [*module.parameters()], allow_unused=True)
    trainer([], precision="bf16-mixed").fit(plain, batch)
    trainer([strategy], precision="bf16-mixed").fit(module, batch)
    for p, q, g in zip(module.parameters(), plain.parameters(), penalty, strict=True):
        torch.testing.assert_close(q.detach() - p.detach(), 0.1 * g, atol=1e-6, rtol=1e-4)


def test_importance_equals_fisher_on_all_training_examples():
    module, strategy = Plain(), EWC(lam=1.0)
    trainer([strategy]).fit(module, DataLoader(data(0, 30), batch_size=8, shuffle=True, drop_last=True))
    assert_close_params(strategy.penalty.importance, fisher(module, [data(0, 30).tensors]))
    assert strategy.examples == 30


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (EWC, {"fisher": "sample", "seed": 3}),
        (EWC, {"fisher": "sample", "label_samples": 3}),
        (EWC, {"fisher": "empirical", "fisher_batch": 4, "seed": 2}),
        (EWC, {"fisher": "predicted", "samples": 7, "seed": 1}),
        (EWC, {"fisher": "weighted", "samples": 7, "seed": 1}),
        (EWC, {"fisher": "reversed", "fisher_batch": 4, "seed": 2}),
        (MAS, {"fisher_batch": 4, "seed": 2}),
        (MAS, {"samples": 7, "seed": 1, "form": "local"}),
    ],
    ids=str,
)
def test_options_reach_the_measurement(make, options):
    module, strategy = Plain(), make(lam=1.0, **options)
    trainer([strategy]).fit(module, loader(0))
    options = dict(options)
    if make is EWC:
        expected = fisher(module, [data(0).tensors], labels=options.pop("fisher"), **options)
    else:
        expected = {None: mas, "local": mas_local}[options.pop("form", None)](module, [data(0).tensors], **options)
    assert_close_params(strategy.penalty.importance, expected)
    assert strategy.examples == options.get("samples", 32)
    assert strategy.cost()["total"] == pytest.approx(sum(f.sum().item() for f in expected.values()), rel=1e-4)


def test_the_cost_per_example_is_the_number_of_backward_passes():
    strategies = EWC(), EWC(loss="mse"), EWC(fisher="sample", label_samples=3), EWC(fisher="empirical")
    assert [strategy.columns(10) for strategy in strategies] == [9, 10, 3, 1]


def assert_close_params(a, b):
    for name in b:
        torch.testing.assert_close(a[name], b[name])


def test_measuring_leaves_the_random_state_as_it_was():
    states = []
    for strategy in (Strategy(), EWC(lam=0.0, fisher="sample", samples=5), MAS(lam=0.0)):
        module = Plain()
        torch.manual_seed(3)
        trainer([strategy]).fit(module, DataLoader(data(0), batch_size=8, shuffle=True))
        states.append(torch.get_rng_state())
        assert module.training
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_ewc_keeps_one_penalty_per_task():
    module, strategy = Plain(), EWC(lam=2.0)
    centres, importances = [], []
    for task in range(3):
        trainer([strategy]).fit(module, loader(task))
        centres.append({n: p.detach().double().clone() for n, p in module.named_parameters()})
        importances.append({n: f.double() for n, f in fisher(module, [data(task).tensors]).items()})
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    now = {n: p.detach().double() for n, p in module.named_parameters()}
    separate = sum((f[n] * (now[n] - a[n]) ** 2).sum() for f, a in zip(importances, centres, strict=True) for n in now)
    assert strategy.value(module).item() == pytest.approx(separate.item(), rel=1e-4)


def test_online_ewc_with_gamma_1_is_ewc_for_two_tasks_only():
    after = {}
    for name, strategy in {"ewc": EWC(lam=5.0), "online": OnlineEWC(lam=5.0, gamma=1.0)}.items():
        module = Plain()
        for task in range(3):
            trainer([strategy]).fit(module, loader(task))
            after[name, task] = module.body.weight.detach().clone()
    assert torch.equal(after["ewc", 1], after["online", 1])
    assert not torch.allclose(after["ewc", 2], after["online", 2], atol=1e-6)


def test_online_ewc_sums_decayed_fishers_at_the_newest_anchor():
    module, strategy = Plain(), OnlineEWC(lam=1.0, gamma=0.5)
    fishers = []
    for task in range(2):
        trainer([strategy]).fit(module, loader(task))
        fishers.append(fisher(module, [data(task).tensors]))
    assert_close_params(strategy.penalty.importance, {n: 0.5 * fishers[0][n] + fishers[1][n] for n in fishers[0]})
    assert_same(strategy.penalty.anchor, dict(module.named_parameters()))


def test_online_ewc_with_gamma_0_penalises_nothing():
    assert_same(learn(Plain(), OnlineEWC(lam=100.0, gamma=0.0)), learn(Plain(), Strategy()))


def test_mas_sums_importances_at_the_newest_anchor():
    module, strategy = Plain(), MAS(lam=1.0)
    omegas = []
    for task in range(2):
        trainer([strategy]).fit(module, loader(task))
        omegas.append(mas(module, [data(task).tensors]))
    assert_close_params(strategy.penalty.importance, {n: omegas[0][n] + omegas[1][n] for n in omegas[0]})


@pytest.mark.parametrize("anchors", ["latest", "all"])
def test_l2_penalises_from_the_latest_anchor_or_from_all(anchors):
    module, strategy = Plain(), L2(lam=2.0, anchors=anchors)
    centres = []
    for task in range(2):
        trainer([strategy]).fit(module, loader(task))
        centres.append(module.body.weight.detach().clone())
    with torch.no_grad():
        module.body.weight.add_(0.1)
    anchors_kept = centres if anchors == "all" else centres[-1:]
    others = {n: p for n, p in module.named_parameters() if n != "body.weight"}
    expected = sum(((module.body.weight - c) ** 2).sum() for c in anchors_kept)
    rest = strategy.value(module) - expected
    if anchors == "latest":
        assert rest.abs().item() < 1e-5
    assert others
    assert strategy.value(module) >= expected - 1e-5


@pytest.mark.parametrize("name", STRATEGIES)
def test_state_dict_restores_a_strategy(name):
    first = STRATEGIES[name]()
    module = trained_and_moved(first)
    trainer([first]).fit(module, loader(1))  # with two anchors the penalty has a constant
    second = STRATEGIES[name]()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        module.body.weight.add_(1.0)
    assert second.value(module).item() == first.value(module).item() > 0


def test_outputs_maps_a_batch_that_is_not_x_and_y():
    class Dicts(Plain):
        def training_step(self, batch, batch_idx):
            return cross_entropy(self(batch["pixels"]), batch["label"])

    x, y = data(0).tensors
    rows = [{"pixels": a, "label": b} for a, b in zip(x, y, strict=True)]
    strategy = EWC(lam=1.0, outputs=lambda module, batch: (module(batch["pixels"]), batch["label"]))
    module = Dicts()
    trainer([strategy]).fit(module, DataLoader(rows, batch_size=8))
    assert_close_params(strategy.penalty.importance, fisher(module, [(x, y)]))


def test_an_unmeasurable_module_is_refused_before_training():
    class Dicts(Plain):
        def training_step(self, batch, batch_idx):
            return cross_entropy(self(batch["pixels"]), batch["label"])

    x, y = data(0).tensors
    rows = [{"pixels": a, "label": b, "weight": b} for a, b in zip(x, y, strict=True)]
    module, before = Dicts(), Dicts().state_dict()
    with pytest.raises(ConfigError, match=r"EWC cannot measure importance on this module: .*Pass outputs=fn"):
        trainer([EWC(lam=1.0)]).fit(module, DataLoader(rows, batch_size=8))
    assert_same(dict(module.state_dict()), dict(before))
    with pytest.raises(ConfigError, match="samples=33: expected at most 32, the number of training examples. Try 32"):
        trainer([EWC(lam=1.0, samples=33)]).fit(module, loader(0))


def test_weights_that_are_unfrozen_inside_a_task_are_penalised():
    class Late(BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.body)

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.body, optimizer, lr=0.1, initial_denom_lr=1.0)

    class Free(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    moved = {}
    for lam in (0.0, 5.0):
        module, strategy = Free(), L2(lam=lam)
        trainer([strategy]).fit(module, loader(0))
        before = module.body.weight.detach().clone()
        trainer([strategy, Late()], max_epochs=4).fit(module, loader(1))
        moved[lam] = (module.body.weight - before).norm().item()
    assert 0 < moved[5.0] < 0.5 * moved[0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_penalty_gradient_is_exact_in_the_dtype_of_weights(dtype):
    """lam = 1e7 overflows in float16, and F d = 1e-9 underflows."""
    module, strategy = nn.Linear(2, 2, bias=False).to(dtype), L2(lam=1e7)
    optimizer = torch.optim.SGD(module.parameters())
    strategy.on_train_start(trainer([]), module)
    anchor = module.weight.detach().float() - 1e-3 * torch.ones(2, 2)
    strategy.penalty = quadratic({"weight": torch.full((2, 2), 1e-6)}, {"weight": anchor})
    strategy.on_before_optimizer_step(trainer([]), module, optimizer)
    expected = torch.full((2, 2), 1e-2, dtype=dtype)
    torch.testing.assert_close(module.weight.grad, expected)
    torch.testing.assert_close(strategy.penalty_state().gradient(dict(module.named_parameters()))["weight"], expected)


def test_a_frozen_weight_is_not_pulled_back():
    module, strategy = Plain(), L2(lam=5.0)
    trainer([strategy]).fit(module, loader(0))
    with torch.no_grad():
        module.body.weight.add_(0.2)
    module.body.requires_grad_(False)
    before = module.body.weight.clone()
    trainer([strategy]).fit(module, loader(1))
    assert torch.equal(module.body.weight, before)


def test_a_head_that_has_grown_under_the_same_name_is_refused():
    module, strategy = Plain(), EWC(lam=1.0)
    trainer([strategy]).fit(module, loader(0))
    module.heads[0] = nn.Linear(8, 5)
    with pytest.raises(
        ConfigError, match=r"heads.0.weight: expected shape \(3, 8\), as when its importance was measured, got \(5, 8\)"
    ):
        trainer([strategy]).fit(module, loader(1))


def test_sparse_gradients_are_refused_before_anything_is_trained():
    module = Plain()
    module.words = nn.Embedding(5, 3, sparse=True)
    with pytest.raises(ConfigError, match="words has sparse gradients, to which a penalty cannot be added"):
        trainer([SI(lam=1.0)]).fit(module, loader(0))


def test_a_line_search_that_would_ignore_the_penalty_is_refused():
    searching = partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")
    with pytest.raises(
        ConfigError, match="line_search_fn compares values of the loss, which do not include the penalty"
    ):
        trainer([L2(lam=1.0)]).fit(Plain(searching), loader(0))


def test_several_loaders_are_refused_before_anything_is_trained():
    class Several(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    module, before = Several(), Several().state_dict()
    with pytest.raises(
        ConfigError, match="data=train: expected one training loader, got a dict of loaders. .* data=LOADER"
    ):
        trainer([EWC(lam=1.0)]).fit(module, {"a": loader(0), "b": loader(1)})
    assert_same(dict(module.state_dict()), dict(before))


def test_a_data_set_of_whole_batches_is_read_as_it_is():
    x, y = data(0).tensors
    batches = list(zip(x.split(8), y.split(8), strict=True))
    module, strategy = Plain(), EWC(lam=1.0)
    trainer([strategy]).fit(module, DataLoader(batches, batch_size=None))
    assert strategy.examples == 32
    assert_close_params(strategy.penalty.importance, fisher(module, [(x, y)]))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_processes_together_measure_all_rows(world):
    """Values that belong to a whole batch are the same in every process."""
    batches = [{"x": torch.arange(first, first + 4), "scale": torch.tensor(2.0), "name": "a"} for first in (0, 4)]
    parts = [list(examples_of_process(batches, rank, world)) for rank in range(world)]
    rows = [[x for batch in part for x in batch["x"].tolist()] for part in parts]
    assert sorted(x for each in rows for x in each) == list(range(8))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert all(batch["scale"] == 2 and batch["name"] == "a" for part in parts for batch in part)


def test_each_of_two_optimizers_gets_its_own_penalty():
    """The penalty is that of the parameters of the optimizer."""

    class Two(Plain):
        def __init__(self):
            super().__init__(manual=True)

        def configure_optimizers(self):
            return [torch.optim.SGD(self.body.parameters(), 0.1), torch.optim.SGD(self.heads.parameters(), 0.1)]

        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(cross_entropy(self(batch[0]), batch[1]))
            for optimizer in optimizers:
                optimizer.step()

    strategy = EWC(lam=5.0)
    module = Two()
    trainer([strategy]).fit(module, loader(0))
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2)
    batch = data(1, 8).tensors
    expected = expected_step(module, strategy, batch, 0.1)
    trainer([strategy]).fit(module, DataLoader(TensorDataset(*batch), 8))
    for p, e in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, atol=2e-6, rtol=1e-5)


def slower_body(params, lr):
    body, *heads = params
    return torch.optim.SGD([{"params": heads}, {"params": [body], "lr": lr / 10}], lr=lr)


@pytest.mark.filterwarnings("ignore:SGD with lr=")
def test_a_stiff_penalty_stops_with_lam_lr_and_the_bound():
    """The learning rate is the largest of the parameter groups."""
    strategy = L2(lam=1e8)
    with pytest.raises(Unstable, match=r"sgd lr=0.1 with lam=1e\+08 is too stiff .*= 1e\+07.*below 2.*Lower lam or lr"):
        learn(Plain(slower_body), strategy, tasks=2, max_epochs=60)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EWC(lam=-1.0), "lam=-1.0"),
        (lambda: EWC(lam=float("nan")), "lam=nan"),
        (lambda: EWC(lam=1e39), r"lam=1e\+39: .* at most 3.4e38"),
        (lambda: EWC(lam=1.0, fisher="true"), "exact, sample, empirical, predicted"),
        (lambda: EWC(lam=1.0, fisher_batch=100), "divide lam by 100"),
        (lambda: EWC(lam=1.0, samples=0), "samples=0"),
        (lambda: MAS(chunk=0), "^chunk=0: expected an integer >= 1 or None, got 0.$"),
        (lambda: OnlineEWC(lam=1.0, gamma=1.5), "gamma=1.5"),
        (lambda: MAS(lam=1.0, decay=-0.1), "decay=-0.1"),
        (lambda: MAS(lam=1.0, fisher_batch=0), "fisher_batch=0"),
        (lambda: L2(lam=1.0, anchors="first"), "latest, all"),
    ],
)
def test_a_wrong_argument_is_named_with_its_rule(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("make", [EWC, MAS, partial(MAS, form="local")], ids=["ewc", "mas", "local"])
def test_chunk_bounds_a_pass_and_does_not_change_the_importance(make):
    """It is the largest number of examples in one pass."""
    sizes = []

    class Watched(Plain):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    importance = {}
    for chunk in (None, 3):
        module, strategy = Watched(), make(chunk=chunk)
        trainer([strategy]).fit(module, loader(0))
        importance[chunk] = strategy.penalty.importance
        sizes.clear()
        strategy.measure(module, loader(0), strategy.outputs_of(module), None)
        assert (max(sizes) > 4) == (chunk is None)  # the probe uses 4 examples
    for name, value in importance[3].items():
        torch.testing.assert_close(value, importance[None][name])
