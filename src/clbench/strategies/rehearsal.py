"""RehearsalStrategy: what all strategies with a memory of examples share."""

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
    """Options of every memory of examples, which a subclass passes on; their meaning stands at ``RehearsalStrategy``."""

    memory: int
    replay: int | None
    buffer: str
    seed: int


class RehearsalStrategy(LearnerStrategy):
    """Keeps examples of the tasks so far, as the learner saw them (scaled, augmented), on the device.

    An example is offered to the memory each time it is trained on, so in several epochs it is offered several times.

    Args:
        memory: examples per task, at least 1; a reservoir has ``memory`` times the number of tasks for all of them.
        replay: examples drawn for a step; None = as many as the batch that came has.
        buffer: ``reservoir`` (a uniform sample of the stream) or ``ring`` (the last ``memory`` of each task).
        seed: seed of what is kept and drawn.

    Raises:
        ConfigError: a number below 1; unknown ``buffer``; when a fit begins, LBFGS.
    """

    def __init__(self, memory: int = 50, replay: int | None = None, buffer: str = "reservoir", seed: int = 0) -> None:
        self.each = check_integer("memory", memory)
        self.replay = check_integer_or_none("replay", replay)
        self.seed = check_integer("seed", seed, least=0)
        self.buffer = check_choice("buffer", buffer, ("reservoir", "ring"))
        self.memory: Reservoir | Ring | None = None
        self.learner: Learner
        self._sequence: TaskSequence | None = None
        self._loaded: dict[str, Any] = {}
        self._index = 0
        self._generator = Generator()

    @property
    def sequence(self) -> TaskSequence:
        """The tasks that are learned."""
        assert self._sequence is not None
        return self._sequence

    def attach(self, learner: Learner, sequence: TaskSequence) -> None:
        super().attach(learner, sequence)
        tasks = len(sequence)
        self._sequence = sequence
        self.memory = Reservoir(tasks * self.each) if self.buffer == "reservoir" else Ring(tasks, self.each)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        task = task_of(trainer)
        if task.mixed:
            raise StrategyError(
                f"{type(self).__name__} remembers examples of one task at a time, but the data of {task.index + 1} are mixed. "
                f"Fit sequence[{task.index}], not sequence.joint({task.index})"
            )
        if self._sequence is not task.sequence:
            self.attach(learner_of(pl_module), task.sequence)
            self.load_state_dict(self._loaded)
            self._loaded = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learner = learner_of(pl_module)
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise StrategyError(
                f"LBFGS computes the loss several times a step, but {type(self).__name__} draws other old examples each "
                "time. Use another optimizer.make._target_, such as torch.optim.SGD"
            )
        task = task_of(trainer)
        self.learner, self._index = learner, task.index
        if trainer.ckpt_path is None:
            self._generator = generator(self.seed, "memory", task.index)
        assert self.memory is not None
        self.memory.to(learner.device)

    def smallest_replay_batch(self, batch_size: int, tasks: int) -> int | None:
        kept = self.each * (tasks if self.buffer == "reservoir" else 1)
        return min(self.replay or batch_size, kept)

    def remember(self, batch: Batch, **more: Tensor) -> None:
        """Offer the examples of the task that is being learned to the memory, with ``more`` tensors (N, ...) of each."""
        examples: Examples = {"x": batch.x, "y": batch.y, "task": torch.full_like(batch.y, self._index), **more}
        if isinstance(self.memory, Reservoir):
            self.memory.add(examples, self._generator)
        elif self.memory is not None:
            self.memory.add(examples, self._index)

    def recall(self, number: int, among: Tensor | None = None) -> tuple[Batch, Examples] | None:
        """Examples drawn from the memory, as they compete now, and all that was kept of them; None if there are none.

        Args:
            number: of examples, unless ``replay`` says another.
            among: slots to draw from; None = all.
        """
        assert self.memory is not None
        examples = self.memory.draw(self.replay or number, self._generator, among)
        if examples is None:
            return None
        told = self.sequence.scenario.name == "task" and self._index > 0  # else all have the outputs of the newest task
        return Batch(examples["x"], examples["y"], examples["task"] if told else self._index), examples

    def cost(self) -> dict[str, float]:
        return {"examples": 0, "bytes": self.memory.bytes() if self.memory is not None else 0}

    def state_dict(self) -> dict[str, Any]:
        if self.memory is None:
            return {}
        return {**self.memory.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.memory is None:
            self._loaded = state_dict  # until it is known how many tasks there are
        elif state_dict:
            self.memory.load_state_dict(state_dict)
            self._generator.set_state(state_dict["generator"])


def together(new: Batch, old: Batch) -> Batch:
    """One batch of both, the old ones behind."""
    task: int | Tensor = new.task
    if isinstance(old.task, Tensor):
        task = torch.cat([torch.full_like(new.y, new.task) if isinstance(new.task, int) else new.task, old.task])
    return Batch(torch.cat([new.x, old.x]), torch.cat([new.y, old.y]), task)
