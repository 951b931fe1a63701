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
    """Slots for examples, on the device of the examples. ``Reservoir`` and ``Ring`` choose the slots to write to.

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
