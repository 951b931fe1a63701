"""RehearsalStrategy: base of the strategies with a memory of examples."""

from __future__ import annotations

from time import perf_counter
from typing import Any, TypedDict

import lightning as L
import torch
from torch import Generator, Tensor

from clbench.data import Batch, Task, TaskSequence, task_of
from clbench.data.targets import LABEL, WHAT
from clbench.errors import StrategyError
from clbench.importance import preserve_state
from clbench.learner import Learner, learner_of
from clbench.seeding import generator
from clbench.strategies.argument_checks import check_choice, check_integer, check_integer_or_none
from clbench.strategies.learner_strategy import LearnerStrategy
from clbench.strategies.memory import BalancedReservoir, Examples, Reservoir, Ring, Shares, balanced, equal_shares


class MemoryOptions(TypedDict, total=False):
    """Options of the memory but ``memory_fill``."""

    memory: int
    replay: int | None
    buffer: str
    seed: int
    memory_total: int | None
    memory_from: str
    memory_balance: str


class RehearsalOptions(MemoryOptions, total=False):
    """Options of the memory that a subclass passes on, explained at ``RehearsalStrategy``."""

    memory_fill: str


class RehearsalStrategy(LearnerStrategy):
    """Keeps examples of the tasks so far on the device, as the learner saw them (scaled and augmented).

    An example is offered to the memory each time it is trained on, so with several epochs it is offered several times. With
    ``memory_fill="end"`` the memory does not change during a task. When the task ends, examples are drawn from its training data
    and stored without augmentation, so these data are read once more.

    Args:
        memory: Examples per task, at least 1. A reservoir shares ``memory`` times the number of tasks among all tasks.
        replay: Examples drawn per step. None draws as many as the new batch has.
        buffer: ``reservoir`` (a uniform sample of the stream) or ``ring`` (the last ``memory`` examples of each task).
        seed: Random seed of the examples that are kept and drawn.
        memory_total: Number of examples of all tasks together, which replaces ``memory``. The reservoir keeps a uniform sample of
            the stream, so the share of each task shrinks as tasks come. None uses ``memory``.
        memory_from: Examples that are drawn: ``all``, also those of the current task, or ``earlier``, those that were stored
            before the current task. Then the first task is learned without replay.
        memory_fill: ``stream`` offers each example while it is trained on. ``end`` fills the memory when a task ends, with a
            uniform random choice of its training examples. Then each task so far has ``memory`` examples, or an equal share of
            ``memory_total``, whose remainder goes to the first tasks. The share of an earlier task shrinks by a random choice.
        memory_balance: ``random``, or ``class`` for numbers of each class that are as equal as possible: in a reservoir by
            class-balancing reservoir sampling (Chrysakis and Moens 2020), with ``memory_fill="end"`` in the share of each task.
            In task-incremental sequences, the classes of each task count separately. With a reservoir, each step waits for the
            device, to read the labels.

    Raises:
        ConfigError: A number is below its minimum, a choice is unknown, or ``memory_total``, ``memory_fill="end"`` or
            ``memory_balance="class"`` is combined with a ring. When a fit starts: the optimiser is LBFGS, ``memory_balance`` is
            ``class`` without one label per example, or ``memory_fill`` is ``end`` and the sequence is blurry.

    Example:
        >>> class Remember(RehearsalStrategy):
        ...     def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        ...         self.remember(batch)
        >>> Remember(memory=50, buffer="ring").smallest_replay_batch(batch_size=128, tasks=5)
        50
    """

    fills: tuple[str, ...] = ("stream", "end")

    def __init__(
        self,
        memory: int = 50,
        replay: int | None = None,
        buffer: str = "reservoir",
        seed: int = 0,
        memory_total: int | None = None,
        memory_from: str = "all",
        memory_fill: str = "stream",
        memory_balance: str = "random",
    ) -> None:
        self.each = check_integer("memory", memory)
        self.replay = check_integer_or_none("replay", replay)
        self.seed = check_integer("seed", seed, least=0)
        self.buffer = check_choice("buffer", buffer, ("reservoir", "ring"))
        self.total = check_integer_or_none("memory_total", memory_total)
        self.memory_fill = check_choice("memory_fill", memory_fill, self.fills)
        self.memory_balance = check_choice("memory_balance", memory_balance, ("random", "class"))
        for name, value, default in (
            ("memory_total", memory_total, None),
            ("memory_fill", memory_fill, "stream"),
            ("memory_balance", memory_balance, "random"),
        ):
            if buffer == "ring" and value != default:
                raise StrategyError(
                    f"{name}={value} with buffer=ring: expected a reservoir, because a ring has the last examples of each task. "
                    f"Use buffer=reservoir, or {name}={default}"
                )
        self.memory_from = check_choice("memory_from", memory_from, ("all", "earlier"))
        self.memory: Reservoir | BalancedReservoir | Ring | Shares | None = None
        self.learner: Learner
        self._loaded: dict[str, Any] = {}
        self._index = 0
        self._generator = Generator()

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        tasks = len(sequence)
        if self.buffer == "ring":
            self.memory = Ring(tasks, self.each)
        elif self.memory_fill != "stream":
            self.memory = Shares(self._slots(tasks))
        else:
            self.memory = (Reservoir if self.memory_balance == "random" else BalancedReservoir)(self._slots(tasks))

    def _slots(self, tasks: int) -> int:
        """Return the number of slots, unless the memory is a ring."""
        return self.total or tasks * self.each

    def check_kind(self, sequence: TaskSequence) -> None:
        super().check_kind(sequence)
        if self.memory_balance == "class" and sequence.kind != LABEL:
            raise StrategyError(
                f"memory_balance=class: expected one label per example, got {WHAT[sequence.kind]}. Use memory_balance=random"
            )

    def check_blur(self, sequence: TaskSequence) -> None:
        super().check_blur(sequence)
        if self.memory_fill != "stream" and sequence.blur:
            raise StrategyError(
                f"memory_fill={self.memory_fill}: expected blur=0, got {sequence.blur:g}, because the tasks of a blurry "
                "sequence share their examples. Use memory_fill=stream"
            )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        task = task_of(trainer)
        if task.mixed:
            raise StrategyError(
                f"{type(self).__name__} stores the examples of one task at a time, but this datamodule mixes {task.index + 1} "
                f"tasks. Fit sequence[{task.index}], not sequence.joint({task.index})"
            )
        if self._sequence is not task.sequence:
            self.attach(learner_of(pl_module), task.sequence)
            self.load_state_dict(self._loaded)
            self._loaded = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise StrategyError(
                f"LBFGS computes the loss several times per step, but {type(self).__name__} draws new examples each time. "
                "Use another optimizer.make._target_, such as torch.optim.SGD"
            )
        task = task_of(trainer)
        self.learner, self._index = learner, task.index
        assert self.memory is not None
        if trainer.ckpt_path is None:
            self._generator = generator(self.seed, "memory", task.index)
            self.memory.start_task()
        self.memory.to(learner.device)

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> int | None:
        at_once = self.buffer == "ring" or self.memory_fill != "stream"
        kept = self.total or (self.each if at_once else tasks * self.each)
        return min(self.replay or batch_size, kept)

    def remember(self, batch: Batch, **more: Tensor) -> None:
        """Offer the examples of ``batch`` to the memory.

        Args:
            batch: The batch.
            more: Further tensors (N, ...) to store with the examples.
        """
        if isinstance(self.memory, Shares):
            return
        examples = self._stored(batch, more)
        if isinstance(self.memory, Ring):
            self.memory.add(examples, self._index)
        elif isinstance(self.memory, BalancedReservoir):
            self.memory.add(examples, class_numbers(self.sequence, examples["y"], examples["task"]), self._generator)
        elif self.memory is not None:
            self.memory.add(examples, self._generator)

    def _stored(self, batch: Batch, more: Examples) -> Examples:
        return {"x": batch.x, "y": batch.y, "task": task_of_each(batch, self._index), **more}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fill the memory if it is filled at the end of a task."""
        if not isinstance(self.memory, Shares):
            return
        start, task, tasks = perf_counter(), task_of(trainer), self._index + 1
        shares = equal_shares(self.total, tasks) if self.total else [self.each] * tasks
        with preserve_state(pl_module), torch.no_grad():
            batches = [
                self._stored(batch, self.more(batch)) for batch in task.examples_at(self.order(task)[: shares[-1]])
            ]
        if batches:
            self.memory.add({name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}, shares)
        self.seconds += perf_counter() - start

    def order(self, task: Task) -> Tensor:
        """Return the indices of the training examples of ``task`` in the order in which they are stored when it ends, (N,)."""
        chosen = torch.randperm(task.examples, generator=generator(self.seed, "memory at the end", task.index))
        return balanced(chosen, task.labels) if self.memory_balance == "class" else chosen

    def more(self, batch: Batch) -> Examples:
        """Return further tensors (N, ...) to store with the examples when a task ends. The learner is in evaluation mode."""
        return {}

    def recall(self, number: int, among: Tensor | None = None) -> tuple[Batch, Examples] | None:
        """Return examples drawn from the memory.

        Args:
            number: Number of examples, used if the option ``replay`` is None.
            among: Slots to draw from. None allows those of ``memory_from``.

        Returns:
            The examples as a batch whose ``task`` selects the outputs that compete now, and all stored tensors of these examples.
            None if there are none.
        """
        assert self.memory is not None
        if among is None and self.memory_from == "earlier":
            among = self.memory.slots_of_earlier_tasks()
        examples = self.memory.draw(self.replay or number, self._generator, among)
        if examples is None:
            return None
        newest = self.sequence.newest(self._index)
        per_example = (
            self.sequence.scenario.name == "task" and newest > 0
        )  # else the outputs of the newest task compete
        return Batch(examples["x"], examples["y"], examples["task"] if per_example else newest), examples

    def cost(self) -> dict[str, float]:
        return {"examples": 0, "bytes": self.memory.bytes() if self.memory is not None else 0}

    def state_dict(self) -> dict[str, Any]:
        if self.memory is None:
            return {}
        return {**self.memory.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.memory is None:
            self._loaded = state_dict  # loaded in setup, when the number of tasks is known
        elif state_dict:
            self.memory.load_state_dict(state_dict)
            self._generator.set_state(state_dict["generator"])


def task_of_each(batch: Batch, task: int) -> Tensor:
    """Return the index of the task of each example of a batch, (N,). It is ``task`` unless the batch has one per example."""
    if isinstance(batch.task, Tensor):
        return batch.task
    return torch.full((len(batch.y),), task, device=batch.y.device)


def class_numbers(sequence: TaskSequence, y: Tensor, task: int | Tensor) -> Tensor:
    """Return a number for the class of each example (N,). Classes of tasks with separate outputs are different."""
    return y + task * max(sequence.sizes) if sequence.scenario.name == "task" else y


def concatenate(new: Batch, old: Batch) -> Batch:
    """Return one batch of the new and the old examples, in this order."""
    task = new.task
    if isinstance(new.task, Tensor) or isinstance(old.task, Tensor):
        task = torch.cat([torch.as_tensor(part.task, device=part.y.device).expand(len(part.y)) for part in (new, old)])
    return Batch(torch.cat([new.x, old.x]), torch.cat([new.y, old.y]), task)
