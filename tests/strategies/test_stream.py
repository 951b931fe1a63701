"""Streams without task boundaries: consolidation every K steps or at plateaus of the loss, and blurry sequences."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from clbench import EWC, MAS
from clbench.config.compose import without_hydra
from clbench.config.hashing import config_hash
from clbench.data import Batch, Batches, TaskSequence, permute, split
from clbench.data.scenario import Scenario
from clbench.data.toy import Digits
from clbench.errors import ConfigError
from clbench.strategies import DER, ER, Independent, LwF, OnlineEWC, Plateau
from clbench.strategies.rehearsal import concatenate
from clbench.strategies.segment import Segment, loss_of
from tests import references
from tests.conftest import stopped_after, trainer
from tests.strategies.test_baselines import learner
from tests.test_train import load, same_checkpoint

SHORT = (
    "epochs=1",
    "data.tasks=3",
    "data.examples_per_task=200",
    "net.hidden=[16]",
    "scenario=domain",
    "batch_size=16",
)
STREAM = (*SHORT, "data.blur=0.1", "strategy.every=20")


class Doubles(L.LightningModule):
    """A small net in float64, which is trained on two batches per step if the gradients of two are accumulated."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 3)).double()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.2)


class History(L.Callback):
    """Copies the weights after each batch, and the batches."""

    def __init__(self):
        self.weights, self.batches = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})
        self.batches.append(batch)


def stream(batches=7, size=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batches * size, 3, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, torch.randint(3, (len(x),), generator=generator)), batch_size=size)


def by_hand(history, first, last, kind):
    """Return the mean importance over batches ``first`` to ``last`` at the weights after ``last``, example by example."""
    module = Doubles()
    module.load_state_dict(history.weights[last])
    x, y = (torch.cat(column) for column in zip(*history.batches[first : last + 1], strict=True))
    if kind is MAS:
        return references.mean(references.per_example_mas(module, x))
    return references.mean(references.per_example(module, x, y, "exact", "cross_entropy"))


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "decay"), [(MAS, {"decay": 0.5}), (OnlineEWC, {"gamma": 0.5})])
def test_the_importance_is_the_decayed_sum_over_the_segments(kind, decay):
    """The anchor is the weights after the last segment, and the seventh batch is not measured."""
    strategy, module, history = kind(lam=0.3, every=3, **decay), Doubles(), History()
    trainer([strategy, history]).fit(module, stream())
    first, second = by_hand(history, 0, 2, kind), by_hand(history, 3, 5, kind)
    assert_close(strategy.penalty.importance, {name: 0.5 * first[name] + second[name] for name in first})
    assert_close(strategy.penalty.anchor, history.weights[5])
    assert strategy.examples == 15


def test_ewc_has_one_penalty_per_segment():
    strategy, module, history = EWC(lam=0.3, every=3), Doubles(), History()
    trainer([strategy, history]).fit(module, stream())
    first, second = by_hand(history, 0, 2, EWC), by_hand(history, 3, 5, EWC)
    assert_close(strategy.penalty.importance, {name: first[name] + second[name] for name in first})
    weights = dict(module.named_parameters())
    penalties = ((first, history.weights[2]), (second, history.weights[5]))
    expected = sum((f[n] * (weights[n] - a[n]) ** 2).sum() for f, a in penalties for n in f)
    torch.testing.assert_close(strategy.value(module), 0.15 * expected)


def test_a_segment_continues_in_the_next_fit():
    """The end of a task is no boundary of the stream."""
    one, two = MAS(lam=0.3, every=3), MAS(lam=0.3, every=3)
    history, module = History(), Doubles()
    for _ in range(2):
        trainer([one, history]).fit(module, stream(batches=4))
    assert_close(one.penalty.anchor, history.weights[5])
    expected, last = by_hand(history, 0, 2, MAS), by_hand(history, 3, 5, MAS)
    assert_close(one.penalty.importance, {name: expected[name] + last[name] for name in last})
    assert one._segment.steps == 2
    trainer([two]).fit(Doubles(), stream(batches=2))
    assert two.penalty is None


def test_the_penalty_acts_from_the_first_segment_on():
    """Before the first consolidation, and without strength, the weights are those of fine-tuning: measuring changes nothing."""
    found = {}
    for name, callbacks in (("strong", [EWC(lam=20.0, every=2)]), ("weak", [EWC(lam=0.0, every=2)]), ("none", [])):
        history = History()
        trainer([*callbacks, history]).fit(Doubles(), stream())
        found[name] = [weights["net.3.weight"] for weights in history.weights]
    equal = [torch.equal(a, b) for a, b in zip(found["strong"], found["none"], strict=True)]
    assert equal == [True, True, True, False, False, False, False]  # at the anchor the penalty has no gradient
    assert all(torch.equal(a, b) for a, b in zip(found["weak"], found["none"], strict=True))


def test_steps_are_counted_and_all_accumulated_batches_measured():
    strategy, history = MAS(lam=0.3, every=2), History()
    trainer([strategy, history], accumulate_grad_batches=2).fit(Doubles(), stream(batches=4))
    assert_close(strategy.penalty.importance, by_hand(history, 0, 3, MAS))


def test_samples_limits_the_examples_of_each_segment():
    strategy = MAS(lam=0.3, every=2, samples=4)
    trainer([strategy]).fit(Doubles(), stream())
    assert strategy.examples == 4
    small = MAS(lam=0.3, every=1, samples=30)
    trainer([small]).fit(Doubles(), stream())
    assert small.examples == 5


def test_a_module_that_ignores_the_penalty_is_noticed():
    """The watch begins with the first penalty."""

    class Raw(Doubles):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer = optimizer if self.global_step < 2 else optimizer.optimizer
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    with pytest.raises(ConfigError, match="SGD stepped without Lightning's wrapper"):
        trainer([MAS(every=1)]).fit(Raw(), stream())


# --- plateaus --------------------------------------------------------------------------------------------------------------


def test_a_plateau_is_low_and_steady_and_follows_a_peak():
    plateau = Plateau(window=3, mean=0.3, deviation=0.1)
    losses = [
        2.0,
        0.2,
        0.2,
        0.2,
        0.2,
        0.1,
        1.0,
        0.1,
        0.5,
        0.1,
        0.2,
        0.2,
    ]  # the peak is 1.0, and 0.1, 0.5, 0.1 is not steady
    found = [plateau.update(loss) for loss in losses]
    assert [i for i, is_plateau in enumerate(found) if is_plateau] == [3, 11]


def test_a_rise_within_one_standard_deviation_is_no_peak():
    """mu = 0.2 and sigma = 0.1 at the plateau, so that a mean above 0.3 is a peak."""
    plateau = Plateau(window=2, mean=0.5, deviation=0.5)
    assert [plateau.update(loss) for loss in (0.1, 0.3, 0.29, 0.29, 0.3, 0.32, 0.1)] == [
        False, True, False, False, False, True, False
    ]  # fmt: skip


def test_importance_is_measured_on_the_window_at_a_plateau():
    """The thresholds are above all losses, so the first plateau is reached when the window is full."""
    strategy, history = MAS(lam=0.3, every=Plateau(window=3, mean=100.0, deviation=100.0)), History()
    trainer([strategy, history]).fit(Doubles(), stream(batches=3))
    assert_close(strategy.penalty.importance, by_hand(history, 0, 2, MAS))


def test_only_the_batches_of_the_window_are_kept():
    strategy, history = MAS(every=Plateau(window=3, mean=1e-9)), History()
    trainer([strategy, history]).fit(Doubles(), stream())
    assert strategy.penalty is None
    assert [torch.equal(a[0], b[0]) for a, b in zip(strategy._segment.batches, history.batches[4:], strict=True)] == [
        True
    ] * 3


def test_the_detector_reads_the_loss_of_each_batch():
    class Recorded(Plateau):
        def update(self, loss):
            seen.append(loss)
            return super().update(loss)

    class Logged(Doubles):
        def training_step(self, batch, batch_idx):
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    for accumulated in (1, 2):
        seen, losses = [], []
        trainer([MAS(every=Recorded())], accumulate_grad_batches=accumulated).fit(Logged(), stream(batches=4))
        assert seen == pytest.approx([loss.item() for loss in losses])


def test_a_step_without_a_loss_has_no_plateaus():
    with pytest.raises(ConfigError, match="every=plateau: expected training_step to return the loss, got NoneType"):
        loss_of(None)
    assert loss_of(torch.tensor(2.0)) == 2.0


# --- options ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(MAS, every=0), "every=0: expected an integer >= 1, plateau, or None"),
        (partial(MAS, every=True), "every=True: expected an integer >= 1, plateau, or None"),
        (partial(EWC, every="often"), "every=often: expected an integer >= 1, plateau, or None"),
        (
            partial(EWC, every=2, data="validation"),
            "every=2 measures on the batches of the stream, inside a fit: expected data=train",
        ),
        (partial(EWC, every=2, consolidate_at="manual"), "inside a fit: expected consolidate_at=fit"),
        (
            partial(MAS, every=2, online=True),
            "every=2 measures on each segment of a stream once, so online has no effect",
        ),
        (partial(MAS, every=2, data="seen"), "data=seen has no effect"),
        (partial(Plateau, window=1), "window=1: expected an integer >= 2"),
        (partial(Plateau, mean=0.0), "mean=0.0: expected a finite number > 0"),
        (partial(Plateau, deviation=-1.0), "deviation=-1.0: expected a finite number > 0"),
    ],
)
def test_a_wrong_option_of_a_stream_is_one_line(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_stream_cannot_be_consolidated_by_hand():
    with pytest.raises(ConfigError, match="every=2: expected None, because consolidate"):
        MAS(every=2).consolidate(Doubles(), stream())


def test_several_processes_have_several_streams():
    strategy = MAS(every=2)
    two = trainer([strategy], devices=2, strategy="ddp_fork")
    with pytest.raises(ConfigError, match="every=2: expected one process"):
        strategy.setup(two, Doubles(), "fit")


def test_the_first_task_depends_on_every():
    options = {"lam": 1.0, "every": 2}
    assert MAS(every=2).first_task_options(options) == OnlineEWC(every="plateau").first_task_options(options) == options
    assert MAS().first_task_options(options) == OnlineEWC().first_task_options(options) == {}


def test_a_new_run_begins_a_new_segment():
    tasks = TaskSequence(Digits, permute, tasks=2, scale=16, examples_per_task=32, batch_size=16)
    strategy, module = MAS(every=Plateau(window=2)), learner(tasks)
    trainer([strategy]).fit(module, datamodule=tasks[0])
    strategy.attach(module, tasks)
    assert strategy._segment.state_dict() == Segment(Plateau(window=2)).state_dict()


# --- blurry sequences ------------------------------------------------------------------------------------------------------


def blurry(scenario, **options):
    head = "multi" if scenario == "task" else "single"
    tasks = split if scenario != "domain" else permute
    common = {"tasks": 5, "scale": 16, "blur": 0.3, "batch_size": 16, "examples_per_task": 48, "validation": 0}
    return TaskSequence(Digits, tasks, scenario=Scenario(scenario, head), **(common | options))


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_er_stores_and_replays_examples_of_several_tasks(scenario):
    """Every stored example has its own task, and new and old examples are trained with the outputs of their tasks."""
    tasks = blurry(scenario)
    strategy, module, contexts = ER(memory=8), learner(tasks), []
    extend = strategy._with_old

    def seen(batch):
        contexts.append(extend(batch))
        return contexts[-1]

    strategy._with_old = seen
    for task in tasks:
        trainer([strategy]).fit(module, datamodule=task)
    assert strategy.memory.filled.all()
    replayed = contexts[-1]
    assert len(replayed.y) == 32
    if scenario == "class":
        assert replayed.task == 4
        return
    assert replayed.task.shape == (32,)
    if scenario == "task":
        own = {(x.numpy().tobytes()): p for p in range(5) for x in _images_of(tasks, p)}
        kept = strategy.memory.examples
        assert [own[x.numpy().tobytes()] for x in kept["x"]] == kept["task"].tolist()
        assert [own[x.numpy().tobytes()] for x in replayed.x] == replayed.task.tolist()


def _images_of(tasks, index):
    return torch.cat([batch.x for batch in Batches([tasks.examples_of("train", 4)[index]], 100)])


def test_batches_with_one_task_and_with_several_are_joined():
    one, several = (
        Batch(torch.zeros(2, 1), torch.zeros(2), 3),
        Batch(torch.zeros(2, 1), torch.zeros(2), torch.tensor([0, 1])),
    )
    assert concatenate(one, several).task.tolist() == [3, 3, 0, 1]
    assert concatenate(several, one).task.tolist() == [0, 1, 3, 3]
    assert concatenate(one, one).task == 3


@pytest.mark.parametrize("make", [DER, LwF, Independent])
def test_strategies_that_need_the_task_of_a_batch_are_refused(make):
    tasks = blurry("task")
    for act in (make().check, lambda tasks: trainer([make()]).fit(learner(tasks), datamodule=tasks[0])):
        with pytest.raises(
            ConfigError, match=r"needs batches of one task: expected blur=0, got 0\.3\. Use blur=0, strategy=er"
        ):
            act(tasks)
    with pytest.raises(ConfigError, match=r"data=seen: expected data=train with blur=0\.3"):
        MAS(data="seen").check(tasks)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("strategy", [partial(OnlineEWC, every=2), partial(MAS, every="plateau")])
def test_a_blurry_stream_is_learned_in_every_scenario(scenario, strategy):
    tasks = blurry(scenario, tasks=2 if scenario == "domain" else 5)
    made, module = strategy(lam=1.0), learner(tasks)
    for task in tasks:
        trainer([made]).fit(module, datamodule=task)
    assert all(p.isfinite().all() for p in module.parameters())


# --- the command line ------------------------------------------------------------------------------------------------------


def test_a_sharp_run_keeps_the_hash_of_its_configuration(composed):
    def identified(*options):
        with_hydra = composed("strategy=mas", *options)
        return config_hash(without_hydra(with_hydra), with_hydra.hydra.runtime.choices)

    assert identified() == identified("data.blur=0", "strategy.every=null") != identified("data.blur=0.1")
    assert identified() != identified("strategy.every=20") != identified("strategy.every=plateau")


@pytest.mark.parametrize(
    "options", [("strategy=online_ewc", *STREAM), ("strategy=mas", *STREAM), ("strategy=er", *STREAM[:-1])]
)
def test_a_stream_resumes_bit_identically_after_a_task(options, run, tmp_path):
    whole = run(*options, folder="whole")
    stopped_after(0, tmp_path / "whole", tmp_path / "again")
    again = run(*options, folder="again")
    assert again["accuracy_matrix"] == whole["accuracy_matrix"]
    last = "checkpoints/task_2.ckpt"
    assert same_checkpoint(load(tmp_path / "again" / last), load(tmp_path / "whole" / last))
