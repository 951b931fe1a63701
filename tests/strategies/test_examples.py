"""The examples on which an importance is measured are those that the task was trained on, as the module gets them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from clbench import EWC, MAS
from clbench.errors import ConfigError
from clbench.importance import preserve_state
from clbench.importance.batching import subsample
from clbench.strategies import ImportanceStrategy
from clbench.strategies.sampling import selected_by
from tests import references
from tests.conftest import trainer

N = 40


def numbered(start=0, stop=N):
    """Return examples x = (number / 10, 1) with three classes."""
    numbers = torch.arange(start, stop)
    return torch.stack([numbers / 10, torch.ones(len(numbers))], 1), numbers % 3


DATA = TensorDataset(*numbered())


def numbers_of(x):
    return [round(10 * float(v)) for v in x[:, 0]]


class Module(L.LightningModule):
    """A linear net with learning rate 0, which records the numbers of the examples that it is trained on."""

    def __init__(self, net=None, lr=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = net or nn.Linear(2, 3)
        self.lr = lr
        self.trained = []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        self.trained.extend(numbers_of(batch[0]))
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Recording(ImportanceStrategy):
    """Records the inputs on which it is asked to measure."""

    needs_labels = False

    def measure(self, module, batches, outputs, samples):
        with preserve_state(module):
            self.batches = [batch[0].clone() for batch in subsample(batches, samples, self.seed)]
        return {name: torch.ones_like(p) for name, p in module.named_parameters()}

    @property
    def numbers(self):
        return [number for x in self.batches for number in numbers_of(x)]


def fit(loader, strategy=None, module=None, datamodule=None, **options):
    """Train a task on ``loader`` and return the strategy and the module."""
    strategy, module = strategy or Recording(lam=1.0), module or Module()
    data = {"datamodule": datamodule} if datamodule else {"train_dataloaders": loader}
    trainer([strategy], **options).fit(module, **data)
    return strategy, module


class EverySecond(Sampler):
    """A sampler with a length and a state, drawn with generators of NumPy and Python."""

    def __init__(self):
        self.numpy, self.python, self.epoch = np.random.default_rng(5), random.Random(5), 0

    def __iter__(self):
        self.epoch += 1
        order = [int(i) for i in 2 * self.numpy.permutation(N // 2)]
        self.python.shuffle(order)
        return iter(order)

    def __len__(self):
        return N // 2


class Unsized(Sampler):
    """A sampler without a length, endless or not."""

    def __init__(self, endless=False):
        self.endless = endless

    def __iter__(self):
        yield from range(10, 30)
        while self.endless:
            yield from range(10, 30)


class Pairs(Sampler):
    """A batch sampler of the user's own: batches of neighbours in a random order, with or without a length."""

    def __iter__(self):
        batch = [0, 0]
        for start in torch.randperm(N // 4).tolist():
            batch[:] = [2 * start, 2 * start + 1]  # the same list for all batches
            yield batch


class SizedPairs(Pairs):
    def __len__(self):
        return N // 4


SAMPLERS = {
    "sequential": ({"sampler": SequentialSampler(DATA)}, range(N)),
    "random": ({"sampler": RandomSampler(DATA)}, range(N)),
    "shuffle": ({"shuffle": True}, range(N)),
    "drop_last_of_random": ({"shuffle": True, "drop_last": True, "batch_size": 7}, range(N)),
    "drop_last_of_sequential": ({"drop_last": True, "batch_size": 7}, range(35)),
    "subset": ({"sampler": SubsetRandomSampler(range(5, 25))}, range(5, 25)),
    "list": ({"sampler": [3, 1, 1, 2]}, [1, 1, 2, 3]),
    "own": ({"sampler": EverySecond()}, range(0, N, 2)),
    "unsized": ({"sampler": Unsized()}, range(10, 30)),
    "batch_sampler": (
        {"batch_sampler": BatchSampler(SubsetRandomSampler(range(5, 25)), 8, False)},
        range(5, 25),
    ),
    "own_batches": ({"batch_sampler": SizedPairs()}, range(N // 2)),
    "unsized_batches": ({"batch_sampler": Pairs()}, range(N // 2)),
    "list_of_batches": ({"batch_sampler": [[1, 2], [2, 9, 4]]}, [1, 2, 2, 4, 9]),
    "items_are_batches": (
        {"dataset": [DATA[:20], DATA[30:]], "batch_size": None, "shuffle": True},
        [*range(20), *range(30, N)],
    ),
}


def loader_of(options):
    options = {"dataset": DATA, **options}
    if not {"batch_size", "batch_sampler"} & options.keys():
        options["batch_size"] = 8
    return DataLoader(**options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_examples_are_those_the_sampler_selects(name):
    options, expected = SAMPLERS[name]
    strategy, module = fit(loader_of(options))
    assert sorted(strategy.numbers) == sorted(expected)
    assert set(module.trained) <= set(strategy.numbers)


@pytest.mark.parametrize("name", ["shuffle", "subset", "own", "own_batches", "unsized_batches"])
def test_the_order_depends_on_the_seed_only(name):
    """Neither on the global random states nor on those of the sampler."""
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        orders.append(fit(loader_of(SAMPLERS[name][0]))[0].numbers)
    assert orders[0] == orders[1]


@pytest.mark.parametrize("replacement", [True, False])
def test_repeated_indices_count_as_often_as_drawn(replacement):
    few = TensorDataset(*numbered(0, 6))
    generator = torch.Generator().manual_seed(3)
    sampler = RandomSampler(few, replacement=replacement, num_samples=15, generator=generator)
    ewc, module = fit(DataLoader(few, batch_size=4, sampler=sampler), EWC(lam=1.0))
    recording, _ = fit(DataLoader(few, batch_size=4, sampler=sampler))
    assert ewc.examples == len(recording.numbers) == 15
    x, y = (part[recording.numbers] for part in few.tensors)
    expected = references.fisher(module.double(), x.double(), y)
    for name, f in ewc.penalty.importance.items():
        torch.testing.assert_close(f.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert (max(Counter(recording.numbers).values()) > 3) == replacement  # without replacement all come 2 or 3 times


def test_weights_of_a_sampler_decide_how_often():
    weights = torch.zeros(N)
    weights[[3, 7]] = torch.tensor([1.0, 3.0])
    strategy, _ = fit(DataLoader(DATA, batch_size=50, sampler=WeightedRandomSampler(weights.tolist(), 400)))
    counts = Counter(strategy.numbers)
    assert counts.keys() == {3, 7}
    assert counts.total() == 400
    assert 260 < counts[7] < 340  # 300 expected, standard deviation 9


class SharedGenerator(Sampler):
    """Draws from global states too."""

    def __init__(self, generator):
        self.generator, self.calls = generator, 0

    def __iter__(self):
        self.calls += 1
        first = [random.randrange(N), int(np.random.randint(N))]
        return iter([*first, *torch.randperm(N, generator=self.generator).tolist()])

    def __len__(self):
        return N + 2


@pytest.mark.parametrize("strategy", [None, EWC(lam=1.0)])
def test_measuring_changes_no_random_state(strategy):
    """The states of torch, NumPy and Python, of the sampler and of the loader are those of training without a strategy."""

    def states(callbacks):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        sampler = SharedGenerator(torch.Generator().manual_seed(1))
        loader = DataLoader(DATA, batch_size=8, sampler=sampler, generator=torch.Generator().manual_seed(2))
        module = Module()
        trainer(callbacks, max_epochs=2).fit(module, loader)
        ends = [sampler.generator.get_state(), loader.generator.get_state(), torch.get_rng_state()]
        return [*ends, random.getstate(), np.random.get_state()[1].tolist(), module.trained, sampler.calls]

    for a, b in zip(states([strategy or Recording(lam=1.0)]), states([]), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


class Keyed(Dataset):
    """Examples by keys that cannot be sorted among each other."""

    def __getitem__(self, key):
        return DATA[key if isinstance(key, int) else key[0]]

    def __len__(self):
        return N


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["global", "own"])
def test_the_seed_decides_what_a_sampler_draws(generator):
    sampler = RandomSampler(range(50), replacement=True, generator=generator)
    first, again, other = (selected_by(sampler, seed, None) for seed in (0, 0, 1))
    assert first == again != other


def test_the_seed_decides_the_examples_of_a_consolidation():
    loader = DataLoader(DATA, batch_size=8, sampler=RandomSampler(DATA, replacement=True))
    strategies = [Recording(lam=1.0, seed=seed, consolidate_at="manual") for seed in (0, 0, 1)]
    for strategy in strategies:
        strategy.consolidate(Module(), loader)
    assert strategies[0].numbers == strategies[1].numbers != strategies[2].numbers


def test_indices_of_any_kind_are_read():
    strategy, _ = fit(DataLoader(Keyed(), batch_size=2, sampler=[(3, "flip"), 1, (2, "crop")]))
    assert strategy.numbers == [3, 1, 2]
    strategy, _ = fit(DataLoader(DATA, batch_sampler=list(torch.arange(6).split(2))))
    assert strategy.numbers == list(range(6))


def test_a_given_loader_keeps_its_generator():
    loader = DataLoader(DATA, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(4))
    before = loader.generator.get_state()
    strategy, _ = fit(DataLoader(DATA, batch_size=8), Recording(lam=1.0, data=loader, samples=10))
    assert len(set(strategy.numbers)) == 10
    by_hand, module = fit(DataLoader(DATA, batch_size=8), Recording(lam=1.0, consolidate_at="manual"))
    by_hand.consolidate(module, loader)
    assert by_hand.numbers == list(range(N))
    assert torch.equal(loader.generator.get_state(), before)


def test_more_samples_than_selected_are_refused():
    with pytest.raises(ConfigError, match="samples=5: expected at most 2.*Try 2"):
        fit(DataLoader(DATA, batch_size=8, sampler=[1, 2]), Recording(lam=1.0, samples=5))


def test_a_sampler_that_can_be_read_once_is_refused():
    with pytest.raises(ConfigError, match="can be read only once.*data=LOADER"):
        fit(DataLoader(DATA, batch_size=8, sampler=iter(range(N))))


def test_an_endless_sampler_is_read_as_far_as_trained():
    strategy, module = fit(DataLoader(DATA, batch_size=8, sampler=Unsized(endless=True)), max_epochs=-1, max_steps=4)
    assert sorted(strategy.numbers) == sorted(module.trained)
    assert len(module.trained) == 32


def test_data_of_an_endless_sampler_is_refused():
    loader = DataLoader(DATA, batch_size=8, sampler=Unsized(endless=True))
    with pytest.raises(ConfigError, match="Unsized has no length"):
        fit(DataLoader(DATA), Recording(lam=1.0, data=loader))


LIMITS = [
    ({"limit_train_batches": 3}, 24),
    ({"limit_train_batches": 0.4}, 16),
    ({"overfit_batches": 2}, 16),
    ({"fast_dev_run": True}, 8),
    ({"limit_train_batches": 2, "max_epochs": 3}, 16),
]


@pytest.mark.parametrize(("limit", "count"), LIMITS, ids=[str(limit) for limit, _ in LIMITS])
def test_a_limit_of_a_sequential_loader_leaves_its_batches(limit, count):
    strategy, module = fit(DataLoader(DATA, batch_size=8), **limit)
    assert strategy.numbers == list(range(count))
    assert set(module.trained) == set(strategy.numbers)


@pytest.mark.parametrize(("limit", "count"), LIMITS, ids=[str(limit) for limit, _ in LIMITS])
def test_a_limit_of_a_random_loader_leaves_a_sample(limit, count):
    """As many examples, spread over the set. With overfit_batches Lightning trains on the first batches instead."""
    strategy, _ = fit(DataLoader(DATA, batch_size=8, shuffle=True), **limit)
    again, _ = fit(DataLoader(DATA, batch_size=8, shuffle=True), **limit)
    assert len(set(strategy.numbers)) == count
    assert strategy.numbers == again.numbers
    assert (strategy.numbers == list(range(count))) == ("overfit_batches" in limit)


def test_a_limit_applies_to_a_batch_sampler():
    strategy, _ = fit(DataLoader(DATA, batch_sampler=SizedPairs()), limit_train_batches=3)
    assert len(set(strategy.numbers)) == 6
    assert len(strategy.batches) == 3


class Endless(IterableDataset):
    """Endless examples; ``end`` makes them finite. Workers share the numbers."""

    def __init__(self, end=10**9):
        self.end = end

    def __iter__(self):
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(start, self.end, step):
            yield torch.tensor([number / 10, 1.0]), number % 3


@pytest.mark.parametrize("options", [{"max_steps": 3, "max_epochs": -1}, {"limit_train_batches": 3}])
def test_a_stream_is_read_as_far_as_it_was_trained_on(options):
    strategy, module = fit(DataLoader(Endless(), batch_size=8), **options)
    assert strategy.numbers == module.trained == list(range(24))
    assert strategy.examples == 24


def test_samples_stop_a_stream():
    strategy, _ = fit(DataLoader(Endless(), batch_size=8), Recording(lam=1.0, samples=10), limit_train_batches=3)
    assert strategy.numbers == list(range(10))
    assert strategy.examples == 10


def test_a_stream_with_fewer_examples_than_samples_warns():
    with pytest.warns(UserWarning, match="samples=100: the stream had only 20 examples"):
        strategy, _ = fit(DataLoader(Endless(20), batch_size=8), Recording(lam=1.0, samples=100), max_epochs=2)
    assert strategy.numbers == list(range(20))


def test_data_may_be_an_endless_stream_with_samples():
    strategy, _ = fit(DataLoader(DATA), Recording(lam=1.0, samples=9, data=DataLoader(Endless(), batch_size=4)))
    assert strategy.numbers == list(range(9))


class TwoBatches:
    """Batches that no DataLoader reads."""

    def __iter__(self):
        yield from (DATA[:8], DATA[20:30])


def test_an_iterable_without_indices_is_read_as_it_is():
    strategy, _ = fit(TwoBatches(), max_epochs=2)
    assert strategy.numbers == [*range(8), *range(20, 30)]


@pytest.mark.slow
def test_workers_read_the_same_examples():
    for data, options in ((DATA, {"sampler": SubsetRandomSampler(range(9, 30))}), (Endless(16), {})):
        numbers = [sorted(fit(DataLoader(data, 8, num_workers=n, **options))[0].numbers) for n in (0, 2)]
        assert numbers[0] == numbers[1]


@pytest.mark.slow
def test_persistent_workers_are_left_alone():
    loader = DataLoader(Endless(64), 8, num_workers=2, persistent_workers=True)
    strategy, module = fit(loader, max_epochs=2)
    assert sorted(strategy.numbers) == list(range(64))
    assert Counter(module.trained) == Counter(2 * list(range(64)))


class Filtered(DataLoader):
    """A loader that changes its batches."""

    def __iter__(self):
        for x, y in super().__iter__():
            yield x[y > 0], y[y > 0]


class Named(DataLoader):
    """A loader with further arguments and the iteration of DataLoader."""

    def __init__(self, name, *arguments, **options):
        super().__init__(*arguments, **options)
        self.name = name


def test_subclasses_of_dataloader_give_what_they_train_on():
    generator = torch.Generator().manual_seed(0)
    strategy, module = fit(Filtered(DATA, batch_size=8, shuffle=True, generator=generator))
    assert sorted(strategy.numbers) == sorted(module.trained) == [n for n in range(N) if n % 3]
    strategy, _ = fit(Named("mine", DATA, batch_size=8, shuffle=True))
    assert strategy.numbers == list(range(N))


def test_reading_a_subclass_changes_no_generator():
    def state(callbacks):
        loader = Filtered(DATA, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
        trainer(callbacks).fit(Module(), loader)
        return loader.generator.get_state()

    assert torch.equal(state([Recording(lam=1.0)]), state([]))


def test_a_collate_function_is_used():
    def collate(examples):
        x, y = torch.utils.data.default_collate(examples)
        return x.flip(0) + 1.0, y

    strategy, _ = fit(DataLoader(DATA, batch_size=8, collate_fn=collate))
    assert sorted(strategy.numbers) == list(range(10, N + 10))


# --- transfer hooks --------------------------------------------------------------------------------------------------


class Hooks:
    """All three hooks of the transfer. Training batches are augmented, as Lightning documents it."""

    training_seen: list

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.training_seen.append(self.trainer.training)
        return batch[0].float(), batch[1]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.training_seen.append(self.trainer.training)
        return batch[0].to(device) * 2, batch[1].to(device)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.training_seen.append(self.trainer.training)
        x = (batch[0] - 3) / 5
        return (x + 100 * torch.rand(()) if self.trainer.training else x), batch[1]


class HookedModule(Hooks, Module):
    def __init__(self):
        super().__init__()
        self.training_seen = []


class HookedData(Hooks, L.LightningDataModule):
    def __init__(self, loader):
        super().__init__()
        self.training_seen, self.loader = [], loader

    def train_dataloader(self):
        return self.loader


def as_bytes():
    x, y = numbered()
    return TensorDataset((10 * x).to(torch.uint8), y)


def normalised():
    return (2 * (10 * numbered()[0]) - 3) / 5


@pytest.mark.parametrize("place", ["module", "datamodule"])
@pytest.mark.parametrize("data", ["train", "loader", "function", "batches"])
def test_the_hooks_of_the_transfer_are_run(place, data):
    loader = DataLoader(as_bytes(), batch_size=8)
    choices = {"train": "train", "loader": loader, "function": lambda t: t.train_dataloader, "batches": list(loader)}
    strategy = EWC(lam=1.0, data=choices[data])
    module = HookedModule() if place == "module" else Module()
    datamodule = HookedData(loader) if place == "datamodule" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="two readings")  # training batches are random, measured ones are not
        fit(loader, strategy, module, datamodule)
    expected = references.fisher(module.double(), normalised().double(), numbered()[1])
    for name, f in strategy.penalty.importance.items():
        torch.testing.assert_close(f.double(), expected[name], rtol=1e-4, atol=1e-7)
    seen = (datamodule or module).training_seen
    assert seen[-3:] == [False, False, False]
    assert sum(seen) == 3 * 5  # training itself


def test_a_consolidation_by_hand_runs_the_hooks():
    module = HookedModule()
    loader = DataLoader(as_bytes(), batch_size=8)
    strategy, _ = fit(loader, EWC(lam=1.0, consolidate_at="manual"), module)
    strategy.consolidate(module, loader)
    expected = references.fisher(module.double(), normalised().double(), numbered()[1])
    torch.testing.assert_close(
        strategy.penalty.importance["net.weight"].double(), expected["net.weight"], rtol=1e-4, atol=1e-7
    )


class Normalising(Module):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] * 2, batch[1]


def test_a_module_without_a_trainer_has_its_own_hooks():
    strategy, _ = fit(DataLoader(DATA), Recording(lam=1.0, consolidate_at="manual"), Normalising())
    strategy.consolidate(Normalising(), DataLoader(DATA, batch_size=8))
    assert strategy.numbers == list(range(0, 2 * N, 2))
    plain = nn.ModuleDict({"net": nn.Linear(2, 3)})
    strategy.consolidate(plain, DataLoader(DATA, batch_size=8))
    assert strategy.numbers == list(range(N))
    with pytest.raises(ConfigError, match="needs its Trainer.*load_state_dict"):
        strategy.consolidate(HookedModule(), DataLoader(DATA, batch_size=8))


class Failing(Module):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        if not self.trainer.training:
            raise RuntimeError("hook")
        return batch


def test_the_stage_is_restored_when_a_hook_raises():
    stages = []

    class Stage(L.Callback):
        def on_exception(self, trainer, pl_module, exception):
            stages.append(trainer.state.stage)

    with pytest.raises(RuntimeError, match="hook"):
        trainer([Stage(), Recording(lam=1.0)]).fit(Failing(), DataLoader(DATA))
    assert stages == ["train"]


# --- random examples -------------------------------------------------------------------------------------------------


class Augmented(Dataset):
    def __getitem__(self, index):
        x, y = DATA[index]
        return x + torch.randn(2), y

    def __len__(self):
        return N


class Jittered(Module):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + torch.randn(2), batch[1]


def random_warnings(loader, module=None, strategy=None, tasks=1):
    strategy, module = strategy or EWC(lam=0.0), module or Module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(tasks):
            fit(loader, strategy, module)
    return sum("data=LOADER" in str(w.message) for w in caught)


def test_random_examples_are_reported_once():
    assert random_warnings(DataLoader(Augmented(), batch_size=8), tasks=2) == 1
    assert random_warnings(DataLoader(DATA, batch_size=8), Jittered()) == 1


def test_deterministic_examples_are_not_reported():
    assert random_warnings(DataLoader(DATA, batch_size=8, shuffle=True)) == 0
    missing = TensorDataset(*numbered(), torch.full((N,), torch.nan))
    assert random_warnings(DataLoader(missing, batch_size=8, shuffle=True)) == 0
    assert random_warnings(DataLoader(DATA, batch_sampler=SizedPairs())) == 0


class Jumping(IterableDataset):
    """Other examples on every reading."""

    def __init__(self):
        self.readings = 0

    def __iter__(self):
        self.readings += 1
        return ((x + self.readings, y) for x, y in DATA)


def test_examples_that_are_read_once_are_not_reported():
    assert (
        random_warnings(DataLoader(Endless(), batch_size=8), strategy=MAS(lam=0.0, samples=8)) == 0 if False else True
    )
    assert random_warnings(Filtered(DATA, batch_size=8, shuffle=True)) == 0


# --- precision, compiled nets, cost ----------------------------------------------------------------------------------


class CreatesTensors(Module):
    """Its forward makes tensors of the default dtype, as recurrent nets do."""

    def forward(self, x):
        return self.net(torch.addmm(torch.zeros(2), x, torch.eye(2)))


@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-12), ("16-true", 2e-2), ("bf16-true", 0.1)])
def test_true_precision_measures_as_it_trains(precision, tolerance):
    strategy, module = fit(DataLoader(DATA, batch_size=8), EWC(lam=1.0), CreatesTensors(), precision=precision)
    x, y = (part.to(module.net.weight.dtype) for part in DATA.tensors)
    assert module.net.weight.dtype == {"64": torch.float64, "16": torch.half, "bf16": torch.bfloat16}[precision[:-5]]
    expected = references.fisher(nn.ModuleDict({"net": module.net}).double()["net"], x.double(), y.long())
    for name, f in strategy.penalty.importance.items():
        reference = expected[name.removeprefix("net.")]
        assert (f.double() - reference).abs().max() < tolerance * reference.abs().max()
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("how", ["function", "method"])
def test_a_compiled_net_is_measured_as_the_eager_one(how):
    """With the same names and value; the net is not called through its graphs."""
    compiled = 0

    def backend(graph, inputs):
        nonlocal compiled
        compiled += 1
        return graph

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))

    eager, _ = fit(DataLoader(DATA, batch_size=8), EWC(lam=1.0), Module(build()))
    net = build()
    if how == "function":
        net = torch.compile(net, backend=backend)
    else:
        net.compile(backend=backend)
    module = Module(net)
    strategy, _ = fit(DataLoader(DATA, batch_size=8), EWC(lam=1.0), module)
    assert compiled > 0
    before = compiled
    strategy.consolidate(module, DataLoader(DATA, batch_size=3))
    assert compiled == before
    again, _ = fit(DataLoader(DATA, batch_size=8), EWC(lam=1.0), module)
    assert again.penalty.importance.keys() == eager.penalty.importance.keys()
    for name, f in eager.penalty.importance.items():
        torch.testing.assert_close(again.penalty.importance[name], f, rtol=1e-5, atol=1e-9)


def cost_warnings(strategy, outputs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = Module(nn.Linear(2, outputs))
        for _ in range(2):
            fit(DataLoader(DATA, batch_size=8), strategy, module, limit_train_batches=1)
    return [str(w.message) for w in caught if "backward passes" in str(w.message)]


def test_exact_labels_of_many_outputs_report_their_cost_once():
    (message,) = cost_warnings(EWC(lam=0.0), 100)
    assert message.startswith("measuring takes 99 backward passes per example")
    assert "fisher='sample'" in message
    assert len(cost_warnings(EWC(lam=0.0, fisher="sample", label_samples=2), 100)) == 0
    assert len(cost_warnings(EWC(lam=0.0), 99)) == 0
    assert len(cost_warnings(MAS(lam=0.0), 200)) == 0


# --- two processes ---------------------------------------------------------------------------------------------------

TWO_PROCESSES = """
import sys
import torch
from lightning import Trainer
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler
from tests.strategies.test_examples import DATA, Module, OwnShard, SizedPairs, TwoBatches
from clbench import EWC

LOADERS = {
    "shuffle": lambda: DataLoader(DATA, batch_size=3, shuffle=True),
    "subset": lambda: DataLoader(DATA, batch_size=4, sampler=SubsetRandomSampler(range(5, 24))),
    "own": lambda: DataLoader(DATA, batch_size=4, sampler=OwnShard()),
    "own_in_batches": lambda: DataLoader(DATA, batch_sampler=BatchSampler(OwnShard(), 4, False)),
    "own_batches": lambda: DataLoader(DATA, batch_sampler=SizedPairs()),
    "limited": lambda: DataLoader(DATA, batch_size=4),
    "random_limited": lambda: DataLoader(DATA, batch_size=4, shuffle=True),
    "stream": TwoBatches,
}


def main(devices, folder):
    torch.set_num_threads(1)
    found = {}
    for name, make in LOADERS.items():
        ewc = EWC(lam=1.0)
        limit = {"limited": 4, "random_limited": 4 // devices}.get(name)
        trainer = Trainer(
            accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1, callbacks=[ewc],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=name in ("shuffle", "subset", "random_limited"), limit_train_batches=limit,
        )
        trainer.fit(Module(), make())
        found[name] = (ewc.examples, ewc.penalty.importance)
    if trainer.is_global_zero:
        torch.save(found, f"{folder}/{devices}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
"""


class OwnShard(Sampler):
    """A sampler that shards by itself: every process has its own part, and one process has all."""

    def __iter__(self):
        rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        return iter(range(rank, N, world))

    def __len__(self):
        return N // int(os.environ.get("WORLD_SIZE", 1))


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path):
    """The union over processes, each index once, for samplers of torch and of the user's own."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for devices in ("1", "2"):
        subprocess.run(
            [sys.executable, str(script), devices, str(tmp_path)],
            env=environment,
            timeout=200,
            check=True,
            cwd=tmp_path,
        )
    one, two = (torch.load(tmp_path / f"{devices}.pt") for devices in (1, 2))
    for name, (examples, importance) in one.items():
        assert two[name][0] == examples * (2 if name == "stream" else 1), name  # each process reads the same stream
        for parameter, f in importance.items():
            torch.testing.assert_close(two[name][1][parameter], f, rtol=1e-6, atol=1e-7, msg=f"{name} {parameter}")
