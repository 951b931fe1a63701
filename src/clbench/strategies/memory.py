"""Memories of examples for rehearsal: which examples of a stream are kept, and drawing from them.

Choices are made on the CPU by generators that are handed in, so that nothing waits for the device and a resumed run
makes the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from clbench.params import size_in_bytes, snapshot

Examples = dict[str, Tensor]
"""Tensors of examples by name (``x``, ``y``, ``task``, ``outputs``, ...), the first dimension of each the examples."""


class Memory:
    """Slots for examples on the device of what is written to them; ``Reservoir`` and ``Ring`` say which slot is next.

    Args:
        slots: how many examples fit, at least 1.

    Attributes:
        filled: which slots hold an example, (slots,) bool, on the CPU.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"slots={slots}: a memory holds at least 1 example")
        self.slots = slots
        self.filled = torch.zeros(slots, dtype=torch.bool)
        self.examples: Examples = {}

    def write(self, examples: Examples, slots: Sequence[int]) -> None:
        """Put ``examples[i]`` into slot ``slots[i]``; where a slot comes twice, the later row stays; -1 is passed over."""
        last = {slot: i for i, slot in enumerate(slots) if slot >= 0}
        if not last:
            return
        if not self.examples:
            self.examples = {name: t.new_zeros(self.slots, *t.shape[1:]) for name, t in examples.items()}
        to, of = torch.tensor(list(last)), torch.tensor(list(last.values()))
        self.filled[to] = True
        for name, t in examples.items():
            there, here = to.to(t.device, non_blocking=True), of.to(t.device, non_blocking=True)
            self.examples[name].index_copy_(0, there, t.detach().index_select(0, here).to(self.examples[name].dtype))

    def draw(self, number: int, generator: Generator, among: Tensor | None = None) -> Examples | None:
        """``number`` of the examples kept (all if there are fewer), uniformly without replacement; None if there are none.

        Args:
            number: of examples.
            generator: of the choice, on the CPU.
            among: (slots,) bool, the slots to draw from; None = all.
        """
        kept = (self.filled if among is None else self.filled & among).nonzero()[:, 0]
        if not len(kept):
            return None
        chosen = kept[torch.randperm(len(kept), generator=generator)[:number]]
        return {name: t.index_select(0, chosen.to(t.device, non_blocking=True)) for name, t in self.examples.items()}

    def to(self, device: torch.device) -> None:
        """Bring what is kept to ``device``."""
        self.examples = {name: t.to(device) for name, t in self.examples.items()}

    def bytes(self) -> int:
        """What the slots take, filled or not."""
        return size_in_bytes(self.examples)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": snapshot(self.examples), "filled": self.filled.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["filled"]) != self.slots:
            raise ValueError(
                f"a state of {len(state['filled'])} slots is not one of this memory, which has {self.slots}"
            )
        self.examples, self.filled = snapshot(state["rows"]), state["filled"].clone()


class Reservoir(Memory):
    """A uniform sample of the stream so far: of n examples seen, each is kept with probability min(1, slots / n).

    Algorithm R (Vitter 1985, "Random sampling with a reservoir"): the n-th example goes to a slot drawn from n; beyond
    the last slot it is passed over.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.seen = 0

    def add(self, examples: Examples, generator: Generator) -> None:
        """Offer ``examples``, in their order."""
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
        tasks: number of tasks.
        each: examples kept of each.
    """

    def __init__(self, tasks: int, each: int) -> None:
        super().__init__(tasks * each)
        self.each = each
        self.seen = [0] * tasks
        self.owner = torch.arange(tasks).repeat_interleave(each)  # the task that a slot belongs to

    def add(self, examples: Examples, task: int) -> None:
        """Write ``examples`` over the oldest examples of ``task``."""
        number = len(next(iter(examples.values())))
        position = torch.arange(self.seen[task], self.seen[task] + number)
        self.seen[task] += number
        self.write(examples, (task * self.each + position % self.each).tolist())

    def before(self, task: int) -> Tensor:
        """The slots of earlier tasks, (slots,) bool."""
        return self.owner < task

    def of(self, task: int) -> Tensor:
        """The slots of ``task``, (slots,) bool."""
        return self.owner == task

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = list(state["seen"])
