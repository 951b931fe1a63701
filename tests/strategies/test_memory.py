"""Memories: which examples are kept and drawn, and that nothing else can change them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from clbench.strategies.memory import BalancedReservoir, Memory, Reservoir, Ring
from tests.conftest import others_slow


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(*sizes: int) -> list[dict[str, torch.Tensor]]:
    """Return numbered examples in batches."""
    numbers = torch.arange(sum(sizes))
    return [{"x": batch[:, None].float(), "number": batch} for batch in numbers.split(list(sizes))]


def uniformity(counts: torch.Tensor, p: float, repeats: int) -> float:
    """Return the p-value of equal inclusion.

    Slots are shared, so the counts have variance p (1 - p) and correlation -1 / (n - 1).
    """
    n = len(counts)
    statistic = ((counts - repeats * p) ** 2 / (repeats * p * (1 - p))).sum().item() * (n - 1) / n
    return float(chi2.sf(statistic, n - 1))


@pytest.mark.parametrize("batch", others_slow([1, 7, 60], 7))
def test_a_reservoir_keeps_every_example_equally_often(batch):
    n, slots, repeats = 60, 10, 1500
    counts = torch.zeros(n, dtype=torch.double)
    generator = seeded(batch)
    for _ in range(repeats):
        memory = Reservoir(slots)
        for examples in stream(*[batch] * (n // batch), *([n % batch] if n % batch else [])):
            memory.add(examples, generator)
        counts[memory.examples["number"]] += 1
    assert counts.sum() == repeats * slots
    assert uniformity(counts, slots / n, repeats) > 1e-3


def test_a_small_reservoir_is_uniform_over_all_outcomes():
    """With 2 slots, the third and the fourth example are drawn a slot from 3 and from 4. All 12 pairs are equally likely."""
    seeds = {}
    for seed in range(500):
        _, _, third, fourth = torch.rand(4, generator=seeded(seed), dtype=torch.double).tolist()
        seeds.setdefault((int(3 * third), int(4 * fourth)), seed)
    assert len(seeds) == 12
    kept = torch.zeros(4, dtype=torch.long)
    for seed in seeds.values():
        memory = Reservoir(2)
        memory.add(stream(4)[0], seeded(seed))
        kept[memory.examples["number"]] += 1
    assert kept.tolist() == [6, 6, 6, 6]


def test_a_reservoir_keeps_all_until_it_is_full():
    memory = Reservoir(10)
    for examples in stream(4, 4):
        memory.add(examples, seeded(0))
    assert memory.examples["number"][memory.filled].tolist() == list(range(8))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 6))
def test_a_ring_keeps_the_last_examples_of_every_task(sizes, each):
    memory = Ring(2, each)
    for task in (0, 1):
        for examples in stream(*sizes):
            memory.add({**examples, "task": torch.full_like(examples["number"], task)}, task)
    kept = min(each, sum(sizes))
    for task in (0, 1):
        mine = memory.examples["number"][memory.slots_of(task) & memory.filled]
        assert sorted(mine.tolist()) == list(range(sum(sizes) - kept, sum(sizes)))
        assert (memory.examples["task"][memory.slots_of(task) & memory.filled] == task).all()


@given(st.integers(1, 30), st.integers(0, 1000))
def test_a_draw_is_without_replacement(number, seed):
    """All examples are drawn if there are fewer than requested."""
    memory = Reservoir(20)
    for examples in stream(12):
        memory.add(examples, seeded(0))
    drawn = memory.draw(number, seeded(seed))["number"]
    assert len(drawn) == len(drawn.unique()) == min(number, 12)


def test_every_example_kept_is_drawn_equally_often():
    memory = Reservoir(12)
    for examples in stream(12):
        memory.add(examples, seeded(0))
    counts, generator, repeats = torch.zeros(12, dtype=torch.double), seeded(1), 2000
    for _ in range(repeats):
        counts[memory.draw(5, generator)["number"]] += 1
    assert uniformity(counts, 5 / 12, repeats) > 1e-3


def test_a_draw_can_be_of_earlier_tasks_only():
    memory = Ring(3, 4)
    assert memory.draw(4, seeded(0)) is None
    for task, examples in enumerate(stream(4, 4)):
        memory.add({**examples, "task": torch.full((4,), task)}, task)
    assert set(memory.draw(9, seeded(0), memory.slots_before(1))["task"].tolist()) == {0}
    assert memory.draw(9, seeded(0), memory.slots_of(2)) is None


def test_where_a_slot_is_written_twice_the_later_row_stays():
    memory = Memory(2)
    memory.write({"x": torch.tensor([1.0, 2.0, 3.0, 4.0])}, [0, 1, 0, -1])
    assert memory.examples["x"].tolist() == [3.0, 2.0]


def test_stored_examples_are_copies_without_history():
    memory, x = Reservoir(3), torch.ones(3, 2, requires_grad=True)
    memory.add({"x": x * 2}, seeded(0))
    assert not memory.examples["x"].requires_grad
    before = memory.examples["x"].clone()
    memory.draw(3, seeded(0))["x"].zero_()
    assert torch.equal(memory.examples["x"], before)


def add(memory, examples, generator):
    if isinstance(memory, BalancedReservoir):
        memory.add(examples, examples["number"] % 3, generator)
    else:
        memory.add(examples, generator if isinstance(memory, Reservoir) else 0)


memories = pytest.mark.parametrize(
    "make",
    [lambda: Reservoir(5), lambda: Ring(2, 3), lambda: BalancedReservoir(5)],
    ids=["reservoir", "ring", "balanced"],
)


@memories
def test_a_state_does_not_change_with_the_memories_that_share_it(make):
    memory, copy, batches = make(), make(), stream(2, 9, 9)
    add(memory, batches[0], seeded(0))
    state = memory.state_dict()
    before = deepcopy(state)
    add(memory, batches[1], seeded(1))
    copy.load_state_dict(state)
    add(copy, batches[2], seeded(2))
    assert {name: t.tolist() for name, t in state.pop("rows").items()} == {
        name: t.tolist() for name, t in before.pop("rows").items()
    }
    for name in ("filled", "written"):
        assert state.pop(name).tolist() == before.pop(name).tolist()
    assert state == before


@memories
def test_a_restored_memory_resumes_as_if_uninterrupted(make):
    memory, copy, batches = make(), make(), stream(6, 6)
    add(memory, batches[0], seeded(0))
    copy.load_state_dict(memory.state_dict())
    for m in (memory, copy):
        add(m, batches[1], seeded(1))
    assert torch.equal(memory.examples["number"], copy.examples["number"])
    assert torch.equal(memory.filled, copy.filled)
    assert memory.bytes() == copy.bytes() == sum(t.numel() * t.element_size() for t in memory.examples.values())


def test_a_memory_without_slots_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Reservoir(0)


def test_a_state_of_another_size_is_refused():
    memory = Reservoir(4)
    with pytest.raises(ValueError, match="expected 5 slots, got 4"):
        Reservoir(5).load_state_dict(memory.state_dict())
