"""RehearsalStrategy: base of the strategies with a memory of examples."""

from __future__ import annotations

from typing import Any, TypedDict

import lightning as L
import torch
from torch import Generator, Tensor

from clbench.data import Batch, TaskSequence, task_of
from clbench.errors import StrategyError
from clbench.learner import Learner, learner_of
from clbench.seeding import generator
from clbench.strategies.argument_checks import check_choice, check_integer, check_integer_or_none
from clbench.strategies.learner_strategy import LearnerStrategy
from clbench.strategies.memory import Examples, Reservoir, Ring


class RehearsalOptions(TypedDict, total=False):
    """Options of the memory that a subclass passes on, explained at ``RehearsalStrategy``."""

    memory: int
    replay: int | None
    buffer: str
    seed: int
    memory_total: int | None
    memory_from: str


class RehearsalStrategy(LearnerStrategy):
    """Keeps examples of the tasks so far on the device, as the learner saw them (scaled and augmented).

    An example is offered to the memory each time it is trained on, so with several epochs it is offered several times.

    Args:
        memory: Examples per task, at least 1. A reservoir shares ``memory`` times the number of tasks among all tasks.
        replay: Examples drawn per step. None draws as many as the new batch has.
        buffer: ``reservoir`` (a uniform sample of the stream) or ``ring`` (the last ``memory`` examples of each task).
        seed: Random seed of the examples that are kept and drawn.
        memory_total: Number of examples of all tasks together, which replaces ``memory``. The reservoir keeps a uniform sample of
            the stream, so the share of each task shrinks as tasks come. None uses ``memory``.
        memory_from: Examples that are drawn: ``all``, also those of the current task, or ``earlier``, those that were stored
            before the current task. Then the first task is learned without replay.

    Raises:
        ConfigError: A number is below its minimum, ``buffer`` or ``memory_from`` is unknown, or ``memory_total`` is combined
            with a ring. When a fit starts, the optimiser is LBFGS.

    Example:
        >>> class Remember(RehearsalStrategy):
        ...     def on_train_batch_end(self, trainer, learner, outputs, batch, batch_idx):
        ...         self.remember(batch)
        >>> Remember(memory=50, buffer="ring").smallest_replay_batch(batch_size=128, tasks=5)
        50
    """

    def __init__(
        self,
        memory: int = 50,
        replay: int | None = None,
        buffer: str = "reservoir",
        seed: int = 0,
        memory_total: int | None = None,
        memory_from: str = "all",
    ) -> None:
        self.each = check_integer("memory", memory)
        self.replay = check_integer_or_none("replay", replay)
        self.seed = check_integer("seed", seed, least=0)
        self.buffer = check_choice("buffer", buffer, ("reservoir", "ring"))
        self.total = check_integer_or_none("memory_total", memory_total)
        if self.total is not None and buffer == "ring":
            raise StrategyError(
                f"memory_total={memory_total} with buffer=ring: expected a reservoir, because a ring has fixed numbers per task. "
                "Use buffer=reservoir, or memory"
            )
        self.memory_from = check_choice("memory_from", memory_from, ("all", "earlier"))
        self.memory: Reservoir | Ring | None = None
        self.learner: Learner
        self._sequence: TaskSequence | None = None
        self._loaded: dict[str, Any] = {}
        self._index = 0
        self._generator = Generator()

    @property
    def sequence(self) -> TaskSequence:
        """The tasks of the run."""
        assert self._sequence is not None
        return self._sequence

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        tasks = len(sequence)
        self._sequence = sequence
        self.memory = Reservoir(self._slots(tasks)) if self.buffer == "reservoir" else Ring(tasks, self.each)

    def _slots(self, tasks: int) -> int:
        """Return the number of slots of a reservoir."""
        return self.total or tasks * self.each

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
        kept = self._slots(tasks) if self.buffer == "reservoir" else self.each
        return min(self.replay or batch_size, kept)

    def remember(self, batch: Batch, **more: Tensor) -> None:
        """Offer the examples of ``batch`` to the memory.

        Args:
            batch: The batch.
            more: Further tensors (N, ...) to store with the examples.
        """
        examples: Examples = {"x": batch.x, "y": batch.y, "task": task_of_each(batch, self._index), **more}
        if isinstance(self.memory, Reservoir):
            self.memory.add(examples, self._generator)
        elif self.memory is not None:
            self.memory.add(examples, self._index)

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


def concatenate(new: Batch, old: Batch) -> Batch:
    """Return one batch of the new and the old examples, in this order."""
    task = new.task
    if isinstance(new.task, Tensor) or isinstance(old.task, Tensor):
        task = torch.cat([torch.as_tensor(part.task, device=part.y.device).expand(len(part.y)) for part in (new, old)])
    return Batch(torch.cat([new.x, old.x]), torch.cat([new.y, old.y]), task)
