"""Memories with equal numbers of each class, and memories that are filled when a task ends."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clbench
from clbench import AGEM, DER, ER, DERpp
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.strategies.memory import BalancedReservoir, balanced, equal_shares
from tests.conftest import stopped_after, trainer
from tests.strategies.test_memory import seeded, uniformity

SHORT = ("data.tasks=3", "data.examples_per_task=60", "epochs=1")
SPLIT = ("data=split_digits", "data.tasks=null", "data.split.classes_per_task=[2,2,2]")
END, CLASS = "strategy.memory_fill=end", "strategy.memory_balance=class"


def offer(memory, classes, generator):
    memory.add({"number": torch.arange(len(classes)), "class": classes}, classes, generator)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 12), st.integers(0, 1000))
def test_every_step_of_a_balanced_reservoir_follows_the_paper(stream, slots, seed):
    """The classes are counted again for every example, by a loop over the slots."""
    memory, generator, stored, full = BalancedReservoir(slots), seeded(seed), [], set()
    for number, label in enumerate(stream):
        memory.add({"number": torch.tensor([number])}, torch.tensor([label]), generator)
        now = memory.examples["number"][memory.filled].tolist()
        changed = [slot for slot in range(len(now)) if now[slot : slot + 1] != stored[slot : slot + 1]]
        if len(stored) < slots:
            assert now == [*stored, number]
        else:
            counts = Counter(stream[n] for n in stored)
            largest = {c for c, count in counts.items() if count == max(counts.values())}
            full |= largest
            assert all(now[slot] == number for slot in changed)
            if label in full:
                assert all(stream[stored[slot]] == label for slot in changed)
            else:
                assert len(changed) == 1 and stream[stored[changed[0]]] in largest
        stored = now


def test_a_balanced_reservoir_is_uniform_within_each_class():
    """Rare classes are kept whole. The others share what is left equally, each example with the same probability."""
    classes = torch.tensor([0, 1, 0, 1, 0, 2, 0, 1, 0, 1] * 6)  # 30, 24 and 6 examples
    counts, repeats, generator = torch.zeros(60, dtype=torch.double), 1500, seeded(0)
    for _ in range(repeats):
        memory = BalancedReservoir(16)
        offer(memory, classes, generator)
        assert memory.examples["class"].bincount().tolist() in ([5, 5, 6], [5, 6, 5], [6, 5, 5])
        counts[memory.examples["number"]] += 1
    for each in (0, 1):
        of_class = counts[classes == each]
        assert uniformity(of_class, (of_class.sum() / repeats / len(of_class)).item(), repeats) > 1e-3
    assert (counts[classes == 2] / repeats).min() > 0.8


def test_a_rare_class_is_kept_whole_and_the_reservoir_loses_it():
    classes = torch.tensor([0] * 500 + [1] * 5 + [0] * 500)
    memory = BalancedReservoir(20)
    offer(memory, classes, seeded(0))
    assert memory.examples["class"].bincount().tolist() == [15, 5]


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_equal_and_the_rest_is_of_the_first(total, tasks):
    shares = equal_shares(total, tasks)
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 1000))
def test_every_beginning_of_a_balanced_order_has_equal_numbers(labels, seed):
    classes = torch.tensor(labels)
    order = balanced(torch.randperm(len(labels), generator=seeded(seed)), classes)
    assert sorted(order.tolist()) == list(range(len(labels)))
    available = Counter(labels)
    for stop in range(1, len(labels) + 1):
        chosen = Counter(classes[order[:stop]].tolist())
        most = max(chosen.values())
        assert all(chosen[c] >= min(most - 1, available[c]) for c in available)


def learned(composed, strategy, *options, tasks=3, watch=lambda task, learner: None):
    sequence, learner, _ = build(composed(*SHORT[:2], *options))
    for task in list(sequence)[:tasks]:
        trainer([strategy]).fit(learner, datamodule=task)
        watch(task, learner)
    return sequence, learner


def stored(strategy, task):
    """Return the stored examples of a task as tuples of numbers."""
    mine = strategy.memory.examples["task"] == task
    return {tuple(x.flatten().tolist()) for x in strategy.memory.examples["x"][mine]}


@pytest.mark.parametrize("make", [ER, DER, DERpp])
def test_a_memory_filled_at_the_end_has_equal_shares(composed, make):
    strategy, shares, kept = make(memory_total=20, memory_fill="end"), [], []

    def watch(task, learner):
        shares.append(strategy.memory.examples["task"].bincount().tolist())
        kept.append([stored(strategy, k) for k in range(task.index + 1)])

    sequence, _ = learned(composed, strategy, watch=watch)
    assert shares == [[20], [10, 10], [7, 7, 6]]
    assert kept[2][0] < kept[1][0] < kept[0][0] and kept[2][1] < kept[1][1]  # what remains was stored before
    for task in sequence:
        x = torch.cat([batch.x for batch in task.importance_dataloader()])
        assert kept[2][task.index] <= {tuple(each.flatten().tolist()) for each in x}


@pytest.mark.parametrize("make", [ER, DER, AGEM])
def test_the_memory_grows_by_its_option_memory_per_task(composed, make):
    strategy, sizes = make(memory=8, memory_fill="end"), []
    learned(composed, strategy, watch=lambda *_: sizes.append(int(strategy.memory.filled.sum())))
    assert sizes == [8, 16, 24]


def test_the_choice_at_the_end_is_uniform_and_of_the_seed(composed):
    sequence = build(composed(*SHORT[:2]))[0]
    counts, repeats = torch.zeros(60, dtype=torch.double), 1500
    for seed in range(repeats):
        counts[ER(memory_fill="end", seed=seed).order(sequence[0])[:10]] += 1
    assert uniformity(counts, 10 / 60, repeats) > 1e-3
    first, same, other = (ER(memory_fill="end", seed=seed).order(sequence[0]) for seed in (0, 0, 1))
    assert first.equal(same) and not first.equal(other)
    assert not first.equal(ER(memory_fill="end").order(sequence[1]))


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_classes_are_balanced_in_every_scenario(composed, scenario):
    options = (*SPLIT, "data.examples_per_task=40", f"scenario={scenario}")
    for fill in ("stream", "end"):
        strategy = ER(memory_total=12, memory_fill=fill, memory_balance="class")
        sequence, learner, _ = build(composed(*options))
        for task in sequence:
            trainer([strategy]).fit(learner, datamodule=task)
        examples = strategy.memory.examples
        number = examples["y"] + (2 * examples["task"] if scenario == "task" else 0)
        counts = number.bincount().tolist()
        assert counts == ([6, 6] if scenario == "domain" else [2] * 6)


def test_examples_are_stored_without_augmentation(composed):
    augment = "data.augment={_target_:clbench.data.augment.RandomCrop,padding:3}"
    strategy = ER(memory=30, memory_fill="end")
    sequence, _ = learned(composed, strategy, augment, tasks=1)
    x = torch.cat([batch.x for batch in sequence[0].importance_dataloader()])
    assert stored(strategy, 0) <= {tuple(each.flatten().tolist()) for each in x}


def test_streamed_and_kept_images_fill_the_memory_alike(composed):
    found = []
    for options in ((), ("data.memory_limit=0", "data.workers=0")):
        strategy = ER(memory=10, memory_fill="end")
        learned(composed, strategy, *options, tasks=2)
        found.append(strategy.memory.examples["x"])
    assert found[0].equal(found[1])


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_der_stores_the_outputs_of_the_trained_net(composed, scenario):
    strategy = DER(memory=9, memory_fill="end")

    def watch(task, learner):
        mine = strategy.memory.examples["task"] == task.index
        newest = 2 if scenario == "class" else task.index
        learner.eval()
        z = learner.net(strategy.memory.examples["x"][mine], newest)
        torch.testing.assert_close(strategy.memory.examples["outputs"][mine], z.detach())

    learned(composed, strategy, *SPLIT, f"scenario={scenario}", "net.dropout=0.5", watch=watch)


def test_filling_at_the_end_has_no_side_effects(composed):
    """The first task is trained without a memory, so its weights and the random state are those of fine-tuning."""
    states = []
    for strategy in (ER(memory_fill="end"), clbench.strategies.Strategy()):
        torch.manual_seed(0)
        _, learner = learned(composed, strategy, "net.dropout=0.5", "net.batch_norm=true", "seed=3", tasks=1)
        states.append([*learner.state_dict().values(), torch.get_rng_state()])
    assert all(a.equal(b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("options", [(END,), (CLASS,), (END, CLASS, "strategy.memory_total=20")])
def test_a_run_with_these_options_resumes_bit_for_bit(run, tmp_path, options):
    options = ("strategy=derpp", *options, "scenario=domain", *SHORT)
    whole = run(*options, folder="whole")
    for task in (0, 1):
        folder = stopped_after(task, tmp_path / "whole", tmp_path / f"again_{task}")
        assert clbench.run([*options, "trainer=cpu"], folder)["accuracy_matrix"] == whole["accuracy_matrix"]


def test_agem_uses_the_examples_that_were_stored_at_the_end(run):
    """With as many examples as the task has, the last ones and a random choice are the same examples."""
    options = ("strategy=agem", "memory=60", "strategy.replay=200", "optimizer=sgd", "lr=0.3", *SHORT)
    ring, end = run(*options, folder="a"), run(*options, END, folder="b")
    assert ring["average_accuracy"] == pytest.approx(end["average_accuracy"], abs=0.02)
    assert end["accuracy_matrix"] != run("strategy=finetune", *options[3:], folder="c")["accuracy_matrix"]


TARGETS = ("data=two_digits", "scenario=domain", CLASS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["strategy.memory_fill=never"], "strategy.memory_fill=never: expected one of stream, end"),
        (["strategy.memory_balance=all"], "strategy.memory_balance=all: expected one of random, class"),
        ([END, "strategy.buffer=ring"], "strategy.memory_fill=end with strategy.buffer=ring: expected a reservoir"),
        ([CLASS, "strategy.buffer=ring"], "strategy.memory_balance=class with strategy.buffer=ring: expected a"),
        ([END, "data.blur=0.2"], "strategy.memory_fill=end: expected blur=0, got 0.2"),
        (TARGETS, "strategy.memory_balance=class: expected one label per example, got several labels"),
    ],
)
def test_options_that_make_no_sense_are_refused(run, options, message):
    with pytest.raises(ConfigError, match=message):
        run("strategy=er", *SHORT, *options)
