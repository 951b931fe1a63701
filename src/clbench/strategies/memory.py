"""Memories of examples for rehearsal: they select the examples of a stream to keep, and draw from them.

Choices are made on the CPU with generators that the caller passes. So nothing waits for the device, and a resumed run makes
the same choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from clbench.params import size_in_bytes, snapshot

Examples = dict[str, Tensor]
"""Tensors of examples by name (``x``, ``y``, ``task``, ``outputs``, ...). Their first dimension is the examples."""


class Memory:
    """Slots for examples, on the device of the examples. Subclasses choose the slots to write to.

    Args:
        slots: Number of examples that fit, at least 1.

    Attributes:
        filled: Which slots contain an example, (slots,) bool, on the CPU.
        written: Which slots were written since the task started, (slots,) bool, on the CPU.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"slots={slots}: expected at least 1")
        self.slots = slots
        self.filled = torch.zeros(slots, dtype=torch.bool)
        self.written = torch.zeros(slots, dtype=torch.bool)
        self.examples: Examples = {}

    def write(self, examples: Examples, slots: Sequence[int]) -> None:
        """Write ``examples[i]`` to slot ``slots[i]``. The last example written to a slot stays, and slot -1 is skipped."""
        last = {slot: i for i, slot in enumerate(slots) if slot >= 0}
        if not last:
            return
        if not self.examples:
            self.examples = {name: t.new_zeros(self.slots, *t.shape[1:]) for name, t in examples.items()}
        to, of = torch.tensor(list(last)), torch.tensor(list(last.values()))
        self.filled[to] = self.written[to] = True
        for name, t in examples.items():
            there, here = to.to(t.device, non_blocking=True), of.to(t.device, non_blocking=True)
            self.examples[name].index_copy_(0, there, t.detach().index_select(0, here).to(self.examples[name].dtype))

    def draw(self, number: int, generator: Generator, among: Tensor | None = None) -> Examples | None:
        """Return ``number`` of the kept examples, drawn uniformly without replacement.

        Args:
            number: Number of examples. All are returned if there are fewer.
            generator: Generator of the choice, on the CPU.
            among: Slots to draw from, (slots,) bool. None allows all.

        Returns:
            The examples, or None if there are none.
        """
        kept = (self.filled if among is None else self.filled & among).nonzero()[:, 0]
        if not len(kept):
            return None
        chosen = kept[torch.randperm(len(kept), generator=generator)[:number]]
        return {name: t.index_select(0, chosen.to(t.device, non_blocking=True)) for name, t in self.examples.items()}

    def start_task(self) -> None:
        """Count all examples so far as those of earlier tasks."""
        self.written.zero_()

    def slots_of_earlier_tasks(self) -> Tensor:
        """Return which slots contain an example that was stored before the current task, (slots,) bool."""
        return self.filled & ~self.written

    def to(self, device: torch.device) -> None:
        """Move the kept examples to ``device``."""
        self.examples = {name: t.to(device) for name, t in self.examples.items()}

    def bytes(self) -> int:
        """Return the bytes of all slots, filled or not."""
        return size_in_bytes(self.examples)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": snapshot(self.examples), "filled": self.filled.clone(), "written": self.written.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["filled"]) != self.slots:
            raise ValueError(f"memory state: expected {self.slots} slots, got {len(state['filled'])}")
        self.examples, self.filled = snapshot(state["rows"]), state["filled"].clone()
        self.written = state.get("written", torch.zeros_like(self.filled)).clone()  # older versions did not store it


class Reservoir(Memory):
    """A uniform sample of the stream so far: each of n examples is kept with probability min(1, slots / n).

    Algorithm R (Vitter 1985, "Random sampling with a reservoir"): example n goes to a slot drawn from n slots, and is skipped if
    that slot does not exist.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.seen = 0

    def add(self, examples: Examples, generator: Generator) -> None:
        """Offer ``examples`` in their order."""
        number = len(next(iter(examples.values())))
        position = torch.arange(self.seen, self.seen + number)
        drawn = (torch.rand(number, generator=generator, dtype=torch.double) * (position + 1)).long()
        slot = torch.where(position < self.slots, position, drawn)
        self.seen += number
        self.write(examples, torch.where(slot < self.slots, slot, -1).tolist())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = state["seen"]


class BalancedReservoir(Memory):
    """A sample of the stream so far with numbers of each class that are as equal as the stream allows.

    Class-balancing reservoir sampling (Chrysakis and Moens 2020, "Online continual learning from imbalanced data", algorithm 1).
    All examples are stored until the memory is full. Then a class is full if it has, or ever had, the most stored examples.

    - An example of a class that is not full replaces a random example of a class that has the most.
    - An example of a full class replaces a random one of its class with probability stored / seen, which are numbers of examples
      of this class, or is skipped.

    Only classes that have the most examples when all slots are filled count. Otherwise the class of the first example would
    always be full.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.slots_of: dict[int, list[int]] = {}
        self.seen: dict[int, int] = {}
        self.full: set[int] = set()

    def add(self, examples: Examples, classes: Tensor, generator: Generator) -> None:
        """Offer ``examples`` of the classes (N,), int64, in their order."""
        self.write(examples, [self._slot(each, generator) for each in classes.tolist()])

    def _slot(self, own: int, generator: Generator) -> int:
        """Return the slot for the next example, of class ``own``, or -1."""
        of, used = self.slots_of, sum(map(len, self.slots_of.values()))
        mine = of.setdefault(own, [])
        self.seen[own] = self.seen.get(own, 0) + 1
        if used < self.slots:
            mine.append(used)
            return used
        most = max(map(len, of.values()))
        largest = [slots for slots in of.values() if len(slots) == most]
        self.full |= {each for each, slots in of.items() if len(slots) == most}
        if own in self.full:
            stays = drawn(self.seen[own], generator) >= len(mine)
            return -1 if stays else mine[drawn(len(mine), generator)]
        mine.append(largest[drawn(len(largest), generator)].pop(drawn(most, generator)))
        return mine[-1]

    def state_dict(self) -> dict[str, Any]:
        slots_of = {each: list(slots) for each, slots in self.slots_of.items()}
        return {**super().state_dict(), "slots_of": slots_of, "seen": dict(self.seen), "full": sorted(self.full)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.slots_of = {each: list(slots) for each, slots in state["slots_of"].items()}
        self.seen, self.full = dict(state["seen"]), set(state["full"])


def drawn(number: int, generator: Generator) -> int:
    """Return an integer drawn uniformly from 0 to ``number`` - 1."""
    return int(torch.randint(number, (), generator=generator))


class Shares(Memory):
    """A share for each task. The examples of a task have the order of their choice, so a smaller share is its beginning."""

    def add(self, examples: Examples, shares: Sequence[int]) -> None:
        """Add the ``examples`` of the newest task, and keep the first ``shares[k]`` examples of each task k so far."""
        *earlier, newest = shares
        lists = [(examples, newest)]
        if self.examples:
            of = [self.examples["task"] == k for k in range(len(earlier))]
            lists = [
                ({n: t[mask] for n, t in self.examples.items()}, each) for mask, each in zip(of, earlier, strict=True)
            ] + lists
        self.examples = {name: torch.cat([part[name][:each] for part, each in lists]) for name in examples}
        self.filled = torch.arange(self.slots) < len(self.examples["task"])


def equal_shares(total: int, tasks: int) -> list[int]:
    """Return ``total`` divided evenly among ``tasks``. The remainder goes to the first ones.

    Example:
        >>> equal_shares(8, tasks=3)
        [3, 3, 2]
    """
    return [total // tasks + (k < total % tasks) for k in range(tasks)]


def balanced(order: Tensor, classes: Tensor) -> Tensor:
    """Return ``order`` changed so that each beginning has equal numbers of all classes, or all examples of a class.

    Args:
        order: Indices of examples (N,).
        classes: Class of each example (N,).

    Example:
        >>> balanced(torch.arange(5), classes=torch.tensor([0, 0, 0, 1, 1]))
        tensor([0, 3, 1, 4, 2])
    """
    seen: dict[int, int] = {}
    ranks = []
    for each in classes[order].tolist():
        ranks.append(seen.get(each, 0))
        seen[each] = ranks[-1] + 1
    return order[torch.tensor(ranks).argsort(stable=True)]


class Ring(Memory):
    """The last ``each`` examples of every task (Lopez-Paz and Ranzato 2017).

    Args:
        tasks: Number of tasks.
        each: Examples kept per task.
    """

    def __init__(self, tasks: int, each: int) -> None:
        super().__init__(tasks * each)
        self.each = each
        self.seen = [0] * tasks
        self.task_of_slot = torch.arange(tasks).repeat_interleave(each)

    def add(self, examples: Examples, task: int) -> None:
        """Replace the oldest examples of ``task`` by ``examples``."""
        number = len(next(iter(examples.values())))
        position = torch.arange(self.seen[task], self.seen[task] + number)
        self.seen[task] += number
        self.write(examples, (task * self.each + position % self.each).tolist())

    def slots_before(self, task: int) -> Tensor:
        """Return which slots belong to earlier tasks, (slots,) bool."""
        return self.task_of_slot < task

    def slots_of(self, task: int) -> Tensor:
        """Return which slots belong to ``task``, (slots,) bool."""
        return self.task_of_slot == task

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = list(state["seen"])
