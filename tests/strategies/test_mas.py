"""MAS as a strategy: the local form, online accumulation and other data. EWC too, where it has the same option."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from clbench import EWC, MAS, fisher, mas
from clbench.data.augment import RandomCrop
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.importance import mas_local
from clbench.importance.batching import count, take
from clbench.learner import learner_outputs
from clbench.strategies import OnlineEWC, Strategy
from tests.conftest import others_slow, stopped_after, trainer
from tests.strategies.test_baselines import learner, sequence
from tests.test_train import load, same_checkpoint

SHORT = ("epochs=1", "data.tasks=2", "net.hidden=[16]", "strategy=mas")
FORMS = {"global": mas, "local": mas_local}


class Plain(L.LightningModule):
    """A user's module with dropout and BatchNorm."""

    def __init__(self, manual=False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
        )
        self.automatic_optimization = not manual

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch.values() if isinstance(batch, dict) else batch
        loss = cross_entropy(self(x), y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Twice(Plain):
    """Calls a layer twice."""

    def forward(self, x):
        return self.net[6](self.net[4:6](self.net[:4](self.net[0](x)[:, :4])))


def of_dict(module, batch):
    return module(batch["pixels"]), None


def data(seed, n=30):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator))


def loader(seed, n=30):
    return DataLoader(data(seed, n), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(seed))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def close(a, b):
    assert a.keys() == b.keys()
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


# --- local and online ---------------------------------------------------------------------------------------------------


class Watched(L.Callback):
    """Measures every example of every batch separately at the end of the batch, and sums the values."""

    def __init__(self, measure, outputs=None):
        self.measure, self.outputs = measure, outputs
        self.total, self.n = {}, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        options_of_measure = {"outputs": self.outputs} if self.outputs else {}
        rows = [take(batch, slice(i, i + 1)) for i in range(count(batch))]
        for row in rows:
            self.n += 1
            for name, value in self.measure(pl_module, [row], **options_of_measure).items():
                self.total[name] = self.total.get(name, 0) + value.double()


def test_the_local_form_is_mas_local_on_all_training_examples():
    module, strategy = Plain(), MAS(form="local")
    trainer([strategy]).fit(module, loader(0))
    close(strategy.penalty.importance, mas_local(module, [data(0).tensors]))
    assert strategy.examples == 30
    assert not strategy.penalty.importance["net.1.weight"].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["plain", "accumulation", "manual", "dicts"])
def test_online_is_the_mean_over_the_examples_trained_on(form, how):
    """Each example is measured at the weights at which it is trained on."""
    options_of_measure = {"outputs": of_dict} if how == "dicts" else {}
    module, strategy = Plain(manual=how == "manual"), MAS(form=form, online=True, **options_of_measure)
    for task in range(2):  # the second task starts a new mean, which is added to the first
        before = strategy.penalty
        watched = Watched(FORMS[form], **options_of_measure)
        batches = loader(task)
        if how == "dicts":
            batches = DataLoader([{"pixels": x, "label": y} for x, y in data(task)], batch_size=8)
        options = {"accumulate_grad_batches": 3} if how == "accumulation" else {}
        trainer([watched, strategy], max_epochs=2, **options).fit(module, batches)
        assert watched.n == strategy.examples == 60
        assert strategy.seconds > 0 and "mean" not in strategy.state_dict()
        mean = {name: (value / watched.n).float() for name, value in watched.total.items()}
        old = before.importance if before is not None else {}
        close(strategy.penalty.importance, {name: value + old.get(name, 0) for name, value in mean.items()})


def test_online_measures_frozen_parameters_if_they_are_selected():
    importances = []
    for is_frozen in (False, True):
        module, strategy = Plain(), MAS(online=True, frozen=True)
        module.net[4].weight.requires_grad_(not is_frozen)
        trainer([strategy], limit_train_batches=1).fit(module, loader(0))
        importances.append(strategy.penalty.importance)
    assert importances[0].keys() == importances[1].keys()
    assert importances[1]["net.4.weight"].any()


def test_online_makes_no_pass_over_the_data_at_the_end():
    class Once(torch.utils.data.IterableDataset):
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter(data(0))

    dataset = Once()
    strategy = MAS(online=True)
    trainer([strategy]).fit(Plain(), DataLoader(dataset, batch_size=8))
    assert (dataset.reads, strategy.examples) == (1, 30)


@pytest.mark.parametrize("form", FORMS)
def test_measuring_online_does_not_change_the_training(form):
    after = []
    for strategy in (Strategy(), MAS(lam=0.0, form=form, online=True)):
        module = Plain()
        torch.manual_seed(3)
        trainer([strategy], max_epochs=2).fit(module, loader(0))
        after.append((weights(module), torch.get_rng_state()))
        assert module.training
    assert same_checkpoint(after[0][0], after[1][0])
    assert torch.equal(after[0][1], after[1][1])


@pytest.mark.parametrize("options", [("strategy.form=local",), ("strategy.online=true",)])
def test_a_run_stopped_after_a_task_resumes_bit_identical(run, tmp_path, options):
    options = (*SHORT, "data.tasks=3", "net.dropout=0.3", "optimizer.reset=false", *options)
    whole = run(*options, folder="whole")
    again = stopped_after(0, tmp_path / "whole", tmp_path / "again")
    resumed = run(*options, folder="again")
    assert resumed["accuracy_matrix"] == whole["accuracy_matrix"]
    assert resumed["importance"] == whole["importance"]
    assert same_checkpoint(load(again / "checkpoints/task_2.ckpt"), load(tmp_path / "whole/checkpoints/task_2.ckpt"))


@pytest.mark.parametrize(
    "options",
    others_slow(
        [("strategy.form=local", "lam=1"), ("strategy.online=true",), ("strategy.data=test",)], ("strategy.data=test",)
    ),
)
def test_each_way_to_measure_keeps_what_fine_tuning_forgets(run, options):
    length = ("epochs=3", "data.tasks=3")
    plain = run(*length, "strategy=finetune", folder="plain")
    result = run(*length, "strategy=mas", *options, folder="penalised")
    assert result["accuracy_matrix"][0] == plain["accuracy_matrix"][0]
    assert result["average_accuracy"] > plain["average_accuracy"] + 0.05
    assert result["forgetting"] < plain["forgetting"] - 0.05
    examples = {"strategy.online=true": 3 * 1293, "strategy.data=test": 360}.get(options[0], 1293)
    assert [task["examples"] for task in result["importance"]] == [examples] * 3
    assert result["seconds"]["importance"] > 0


@pytest.mark.parametrize("net", ["mlp_bn", "cnn", "resnet18_reduced"])
def test_the_local_form_supports_our_nets(run, tmp_path, net):
    run(*SHORT[:2], "strategy=mas", f"net={net}", "strategy.form=local", "samples=20", "+trainer.limit_train_batches=1")
    importance = load(tmp_path / "run/checkpoints/task_1.ckpt")["strategy"]["importance"]
    for name, value in importance.items():
        matrix = name.endswith("weight") and value.dim() > 1
        assert value.min() >= 0
        assert value.any() or not matrix, name


def test_a_module_without_local_form_is_refused_before_training():
    module = Twice()
    before = weights(module)
    with pytest.raises(ConfigError, match=r"MAS cannot measure importance on this module: 'net.0.bias' is used by two"):
        trainer([MAS(form="local")]).fit(module, loader(0))
    assert same_checkpoint(weights(module), before)


# --- other data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "measure"), [(MAS, mas), (EWC, fisher), (OnlineEWC, fisher)])
@pytest.mark.parametrize("given", ["batches", "loader", "callable"])
def test_batches_of_the_importance_may_be_given_without_labels(make, measure, given):
    """They are given as a list, as a loader or as a function, for any module."""
    x = data(7, 20).tensors[0]
    asked = []

    def after(trainer):
        asked.append(trainer.global_step)
        return [x[:9], x[9:]]

    elsewhere = {"batches": [x[:9], x[9:]], "loader": DataLoader(x, batch_size=6), "callable": after}[given]
    module, strategy = Plain(), make(lam=1.0, data=elsewhere)
    for _ in range(2):
        before = strategy.penalty
        trainer([strategy]).fit(module, loader(0))
        measured = strategy.penalty.importance
        measured = {n: f - before.importance[n] for n, f in measured.items()} if before is not None else measured
        close(measured, measure(module, [x]))
        assert strategy.examples == 20
    assert asked == ([4, 4] if given == "callable" else [])


def test_samples_are_drawn_from_the_data_that_is_given():
    strategy = MAS(data=DataLoader(data(7, 20), batch_size=6), samples=5)
    module = Plain()
    trainer([strategy]).fit(module, loader(0))
    close(strategy.penalty.importance, mas(module, [data(7, 20).tensors], samples=5))
    with pytest.raises(ConfigError, match="samples=21: expected at most 20, the number of given examples. Try 20"):
        trainer([MAS(data=DataLoader(data(7, 20), batch_size=6), samples=21)]).fit(module, loader(0))


@pytest.mark.parametrize("which", ["train", "validation", "test"])
@pytest.mark.parametrize("strategy", ["mas", "ewc", "online_ewc"])
def test_data_names_a_part_of_the_task_that_was_learned(run, composed, tmp_path, which, strategy):
    options = (*SHORT[:3], f"strategy={strategy}", "data=split_digits", "scenario=class", f"strategy.data={which}")
    result = run(*options)
    sequence, learner, _ = build(composed(*options))
    measure = partial(mas if strategy == "mas" else fisher, outputs=learner_outputs)
    expected = {}
    for index in range(2):
        state = load(tmp_path / f"run/checkpoints/task_{index}.ckpt")
        learner.load_state_dict(state["learner"])
        loaders = {"test": sequence[index].test_dataloader, "validation": sequence[index].val_dataloader}
        batches = sequence[index].importance_dataloader() if which == "train" else loaders[which]()[index]
        assert result["importance"][index]["examples"] == batches.examples
        for name, value in measure(learner, batches).items():
            expected[name] = expected.get(name, 0) + value
    close(state["strategy"]["importance"], expected)


def test_the_importance_of_all_tasks_seen_is_measured_again(run, composed, tmp_path):
    """The second form in the authors' code: at the weights after task 1, Omega of task 0 with its head plus Omega of task 1."""
    result = run(*SHORT, "strategy.data=seen", "data.examples_per_task=100")
    assert [task["examples"] for task in result["importance"]] == [100, 200]
    sequence, learner, _ = build(composed(*SHORT, "data.examples_per_task=100"))
    state = load(tmp_path / "run/checkpoints/task_1.ckpt")
    learner.load_state_dict(state["learner"])
    each = [mas(learner, sequence[i].importance_dataloader(), outputs=learner_outputs) for i in range(2)]
    close(state["strategy"]["importance"], {name: each[0][name] + each[1][name] for name in each[0]})


@pytest.mark.parametrize("options", [{}, {"data": "seen"}], ids=str)
def test_importance_is_measured_on_images_that_are_not_augmented(options):
    augmented, plain = (sequence("domain", 1, **more) for more in ({"augment": RandomCrop(3)}, {}))
    module, strategy = learner(augmented), MAS(**options)
    trainer([strategy]).fit(module, datamodule=augmented[0])
    close(strategy.penalty.importance, mas(module, plain[0].importance_dataloader(), outputs=learner_outputs))


def test_samples_of_all_tasks_seen_are_counted(run):
    result = run(*SHORT, "strategy.data=seen", "samples=20")
    assert [task["examples"] for task in result["importance"]] == [20, 40]


def test_a_user_loop_can_measure_on_the_test_images_of_each_task(composed):
    sequence, _, _ = build(composed(*SHORT, "scenario=domain"))

    class Flat(Plain):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def training_step(self, batch, batch_idx):
            return cross_entropy(self(batch.x), batch.y)

    module, strategy = Flat(), MAS(data="test", decay=0.0)
    for task in sequence:
        trainer([strategy]).fit(module, datamodule=task)
        close(strategy.penalty.importance, mas(module, task.test_dataloader()[task.index]))


# --- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy.form=hebbian"], "form=hebbian: expected one of global, local, got 'hebbian'."),
        (["strategy.form=local", "fisher_batch=8"], "fisher_batch=8: expected 1 with strategy.form=local"),
        (["strategy.online=maybe"], "strategy.online=maybe: expected true or false, got 'maybe'"),
        (["strategy.online=true", "samples=10"], "strategy.online=true measures on every training batch.* Leave out samples"),
        (["strategy.online=true", "strategy.data=test"], "strategy.online=true .* Leave out data"),
        (["strategy.data=tset"], "strategy.data=tset: expected one of train, validation, test, got 'tset'"),
        (["strategy.data=validation", "data.validation=0"], "expected validation examples, got none. Set data.validation"),
        (["strategy.data=test", "samples=1000"], "samples=1000: expected at most 360, the number of test examples"),
        (["samples=60", "data.examples_per_task=[90,50]"], "samples=60: expected at most 50, the number of training examples of"),
        (["strategy=ewc", "data=split_digits", "data.split.classes_per_task=[2,1]"], "task 2 has a single class"),
        (["strategy=ewc", "fisher=reversed", "strategy.data=test"], "strategy.data=test: fisher=reversed would read the labels"),
        (["strategy=ewc", "fisher=weighted", "fisher_batch=2"], "fisher_batch=2 with fisher=weighted: expected 1"),
        (["strategy=ewc", "fisher=empirical", "strategy.data=test"], "strategy.data=test: .* of the test data. Use fisher=exact"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_in_one_line(run, options, message):
    with pytest.raises(Exception, match=message) as caught:
        run(*SHORT, *options)
    error = caught.value if isinstance(caught.value, ConfigError) else caught.value.__cause__
    assert isinstance(error, ConfigError)
    assert "\n" not in str(error)


def test_a_part_of_a_task_needs_a_task():
    with pytest.raises(ConfigError, match="data=test: expected a task of a clbench sequence"):
        trainer([MAS(data="test")]).fit(Plain(), loader(0))
