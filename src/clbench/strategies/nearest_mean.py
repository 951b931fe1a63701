"""Strategies that predict the class with the nearest mean of features, and the one that trains as ER does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Any, Unpack

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clbench.data import Batch, Task, TaskSequence
from clbench.data.targets import LABEL
from clbench.errors import StrategyError
from clbench.importance import preserve_state
from clbench.learner import Learner, learner_of
from clbench.nets import Net
from clbench.strategies.er import ER
from clbench.strategies.exemplars import class_means, closeness, herded
from clbench.strategies.learner_strategy import LearnerStrategy
from clbench.strategies.loss_weights import LossWeights
from clbench.strategies.memory import balanced
from clbench.strategies.rehearsal import MemoryOptions, class_numbers


class NearestMeanStrategy(LearnerStrategy):
    """Base of strategies that predict the class with the nearest mean of the features of its stored examples.

    A feature is the input of the head, normalised to length 1 (Rebuffi et al. 2017, algorithm 1). The means are computed with the
    current net when a task has ended, and for evaluations inside a task. They are not stored, because the examples and the net
    determine them. Classes without stored examples are not predicted. If no class that competes has any, as before the first task
    ends, the outputs of the net decide.

    In task-incremental sequences the classes of the task compete. In domain-incremental ones a mean is over the examples of all
    tasks.

    Raises:
        ConfigError: When a fit starts, the net is not a body with a head.

    Attributes:
        means: Means (contexts, C, F), nan for classes without examples. None if they are to be computed again.
    """

    kinds = (LABEL,)
    per_process = False
    predicts_probabilities = False
    means: Tensor | None = None

    @abstractmethod
    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs and the class numbers (``class_numbers``) of the stored examples in batches."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not isinstance(net := learner_of(pl_module).net, Net):
            raise StrategyError(f"net: expected a clbench.nets.Net of body and head, got {type(net).__name__}")

    def predict(self, learner: Learner, batch: Batch) -> Tensor:
        """Return the cosine of each example with each mean (N, C), or the outputs if there is no mean."""
        if self.means is None:
            self.means = self._measured(learner)
        means = self.means.to(learner.device)[batch.task if self.sequence.scenario.name == "task" else 0]
        if means.isnan().all():
            return learner.logits(learner(batch.x, batch.task))
        return closeness(normalized_features(learner, batch.x), means.to(batch.x.dtype))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.means = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        start = perf_counter()
        self.means = self._measured(learner_of(pl_module))
        self.seconds += perf_counter() - start

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.means = None

    def _measured(self, learner: Learner) -> Tensor:
        sequence = self.sequence
        contexts, width = table_of(sequence)
        with preserve_state(learner), torch.no_grad():
            found = [(normalized_features(learner, x.to(learner.device)), numbers) for x, numbers in self.stored()]
        if not found:
            return torch.full((contexts, width, 1), torch.nan, device=learner.device)
        features, numbers = torch.cat([f for f, _ in found]), torch.cat([n for _, n in found])
        return class_means(features, numbers.to(features.device), contexts * width).view(contexts, width, -1)


class NearestMean(NearestMeanStrategy, ER):
    """Experience replay whose predictions are the nearest class means of the features of its stored examples.

    It is trained as ``ER``, and predicts as iCaRL does (``NearestMeanStrategy``).

    Args:
        loss_weights: See ``ER``.
        memory_fill: ``herding`` chooses examples of each class of a task by herding when the task ends (Rebuffi et al. 2017,
            algorithm 4), the same number of each. ``end`` and ``stream`` are those of ``RehearsalStrategy``.
        options: The other options of ``RehearsalStrategy``.

    Raises:
        ConfigError: See ``ER``. When a fit starts, the net is not a body with a head, or there is not one label per example.

    Example:
        >>> import lightning as L
        >>> from clbench.config.compose import compose
        >>> from clbench.experiment.build import build
        >>> sequence, learner, _ = build(compose(["data=bit_ops", "data.tasks=2", "data.validation=0", "scenario=domain"]))
        >>> nearest_mean = NearestMean(memory=2)
        >>> for task in sequence:
        ...     L.Trainer(max_epochs=1, barebones=True, callbacks=[nearest_mean]).fit(learner, datamodule=task)
        >>> nearest_mean.memory.examples["y"].tolist()  # one example of each class, for each of two tasks
        [0, 1, 0, 1]
    """

    fills = ("stream", "end", "herding")

    def __init__(
        self, *, loss_weights: LossWeights = "equal", memory_fill: str = "herding", **options: Unpack[MemoryOptions]
    ) -> None:
        super().__init__(loss_weights=loss_weights, memory_fill=memory_fill, **options)

    def order(self, task: Task) -> Tensor:
        if self.memory_fill != "herding":
            return super().order(task)
        labels, features = task.labels, features_of(self.learner, task.importance_dataloader())
        return balanced(torch.cat(herded(features, labels, self.total or self.each)), labels)

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.memory is not None
        if self.memory.examples:
            kept = self.memory.filled.nonzero()[:, 0]
            x, y, task = (
                self.memory.examples[name][kept.to(self.memory.examples[name].device)] for name in ("x", "y", "task")
            )
            yield from zip(x.split(1000), class_numbers(self.sequence, y, task).split(1000), strict=True)


def table_of(sequence: TaskSequence) -> tuple[int, int]:
    """Return the number of sets of competing classes and the largest number of classes in one."""
    name, sizes = sequence.scenario.name, sequence.sizes
    return (len(sizes), max(sizes)) if name == "task" else (1, sum(sizes) if name == "class" else sizes[0])


def normalized_features(learner: Learner, x: Tensor) -> Tensor:
    """Return the inputs of the head for inputs x, normalised to length 1, (N, F)."""
    assert isinstance(learner.net, Net)
    return normalize(learner.net.body(x), dim=1)


def features_of(learner: Learner, batches: Iterable[Batch]) -> Tensor:
    """Return the normalised features of all examples of ``batches`` (N, F)."""
    return torch.cat([normalized_features(learner, batch.x.to(learner.device)) for batch in batches])
