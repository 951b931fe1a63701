"""Measures: the loss and the quality of a learner on the examples of one task, accumulated batch by batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import lightning as L
import torch
from torch import Tensor

from clbench.data import Batch, TaskSequence
from clbench.data.targets import LABEL, LABELS, NO_LABEL, NUMBERS
from clbench.importance.preserve_state import preserve_state
from clbench.learner import Learner
from clbench.metrics.accuracy_matrix import BINS, calibration_gaps, nll
from clbench.metrics.quality import QUALITIES, Quality
from clbench.strategies import Strategy

LOSS, TERMS = 0, 1

FINETUNE = Strategy()
"""The strategy that predicts with the outputs of the learner."""


class Measure(ABC):
    """Base: sums over the batches of one data set. The loss is the sum of ``LOSS`` divided by the number of ``TERMS``.

    Args:
        outputs: Number of outputs, for the measures that need it.

    Attributes:
        sums: Sum of the losses, number of losses, and further sums of a subclass, float64 on the CPU.
    """

    quality: Quality

    def __init__(self, outputs: int = 0) -> None:
        self.outputs = outputs
        self.sums = torch.zeros(2, dtype=torch.double)

    def update(self, learner: Learner, z: Tensor, y: Tensor) -> None:
        """Add a batch of outputs z, float32, and targets y."""
        terms = (y != NO_LABEL).sum() if y.dim() > 1 and not y.is_floating_point() else len(y)
        if terms:
            self.sums[LOSS] += (learner.loss(z, y).double() * terms).item()
            self.sums[TERMS] += int(terms)

    def reduce(self, trainer: L.Trainer, device: torch.device) -> None:
        """Add the sums of all processes."""
        self.sums = trainer.strategy.reduce(self.sums.to(device), reduce_op="sum").cpu()

    @property
    def loss(self) -> float:
        """Mean loss."""
        return (self.sums[LOSS] / self.sums[TERMS]).item()

    @abstractmethod
    def value(self) -> float:
        """Return the quality."""

    def details(self) -> dict[str, float]:
        """Return the entry of ``per_task`` in metrics.json."""
        return {self.quality.key("accuracy"): self.value()}


class LabelMeasure(Measure):
    """Accuracy, negative log-likelihood and calibration of one label per example."""

    quality = QUALITIES["accuracy"]

    def __init__(self, outputs: int = 0) -> None:
        super().__init__(outputs)
        self.sums = torch.zeros(3 + BINS, dtype=torch.double)

    def update(self, learner: Learner, z: Tensor, y: Tensor) -> None:
        z = learner.logits(z)
        counts = torch.stack([nll(z, y).double().sum(), (z.argmax(1) == y).sum().double()]).cpu()
        self.sums[LOSS] += counts[0]
        self.sums[TERMS] += len(y)
        self.sums[2] += counts[1]
        self.sums[3:] += calibration_gaps(z, y).cpu()

    def value(self) -> float:
        return (self.sums[2] / self.sums[TERMS]).item()

    def details(self) -> dict[str, float]:
        ece = (self.sums[3:].abs().sum() / self.sums[TERMS]).item()
        return {"accuracy": self.value(), "nll": self.loss, "ece": ece}


class ScoreMeasure(LabelMeasure):
    """Accuracy of one label per example, from scores that are no logits. The loss and the calibration error are nan."""

    def __init__(self, outputs: int = 0) -> None:
        super().__init__(outputs)
        self.sums[[LOSS, *range(3, len(self.sums))]] = math.nan

    def update(self, learner: Learner, z: Tensor, y: Tensor) -> None:
        self.sums[TERMS] += len(y)
        self.sums[2] += (z.argmax(1) == y).sum().item()


class TokenMeasure(Measure):
    """Bits per token: the mean cross-entropy divided by log 2."""

    quality = QUALITIES["bits_per_token"]

    def value(self) -> float:
        return self.loss / math.log(2)


class ByteMeasure(TokenMeasure):
    """Bits per byte."""

    quality = QUALITIES["bits_per_byte"]


class NumberMeasure(Measure):
    """Mean squared error, a mean over examples and numbers."""

    quality = QUALITIES["mse"]

    def value(self) -> float:
        return self.loss


class PixelMeasure(Measure):
    """Mean over classes of the intersection of predicted and true pixels over their union (IoU), over all examples.

    Classes that are neither predicted nor true are left out.
    """

    quality = QUALITIES["mean_iou"]

    def __init__(self, outputs: int = 0) -> None:
        super().__init__(outputs)
        self.sums = torch.zeros(2 + outputs**2, dtype=torch.double)

    def update(self, learner: Learner, z: Tensor, y: Tensor) -> None:
        super().update(learner, z, y)
        counts = y != NO_LABEL
        pairs = self.outputs * y[counts] + z.argmax(1)[counts]
        self.sums[2:] += pairs.bincount(minlength=self.outputs**2).cpu()

    def value(self) -> float:
        confusion = self.sums[2:].view(self.outputs, self.outputs)  # true, predicted
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        return (confusion.diagonal() / union).nanmean().item()


class LabelsMeasure(Measure):
    """Mean average precision: the average precision of each label over all examples, mean over the labels that occur."""

    quality = QUALITIES["mean_average_precision"]

    def __init__(self, outputs: int = 0) -> None:
        super().__init__(outputs)
        self.scores: list[Tensor] = []
        self.targets: list[Tensor] = []

    def update(self, learner: Learner, z: Tensor, y: Tensor) -> None:
        super().update(learner, z, y)
        self.scores.append(z.cpu())
        self.targets.append(y.cpu())

    def reduce(self, trainer: L.Trainer, device: torch.device) -> None:
        super().reduce(trainer, device)
        for values in (self.scores, self.targets):
            found: list[list[Tensor]] = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(found, values)
            values[:] = [value for of_process in found for value in of_process]

    def value(self) -> float:
        scores, targets = torch.cat(self.scores), torch.cat(self.targets)
        found = [average_precision(z, y) for z, y in zip(scores.T, targets.T, strict=True) if y.any()]
        return sum(found) / len(found) if found else math.nan


def average_precision(scores: Tensor, targets: Tensor) -> float:
    """Return sum_k (R_k - R_{k-1}) P_k over the thresholds k, with precision P_k and recall R_k, as scikit-learn does.

    Args:
        scores: Scores (N,). Examples with equal scores have one threshold.
        targets: Labels 0 or 1 (N,), at least one of them 1.

    >>> round(average_precision(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 1])), 4)
    0.8333
    """
    order = scores.argsort(descending=True)
    scores, hits = scores[order], targets[order].double().cumsum(0)
    is_threshold = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])
    hits, ranks = hits[is_threshold], torch.arange(1, len(scores) + 1)[is_threshold]
    gained = torch.diff(hits, prepend=hits.new_zeros(1)) / hits[-1]
    return (gained * hits / ranks).sum().item()


def measure_of(sequence: TaskSequence, strategy: Strategy = FINETUNE) -> type[Measure]:
    """Return the measure of the targets of ``sequence``, as ``strategy`` predicts them."""
    if sequence.kind == LABEL and not strategy.predicts_probabilities:
        return ScoreMeasure
    by_kind = {LABEL: LabelMeasure, LABELS: LabelsMeasure, NUMBERS: NumberMeasure}
    if sequence.kind in by_kind:
        return by_kind[sequence.kind]
    if sequence.has_images:
        return PixelMeasure
    return ByteMeasure if all(task.source.is_bytes for task in sequence.definitions) else TokenMeasure


def measured(
    module: Learner,
    loaders: Iterable[Iterable[Batch]],
    kind: type[Measure] = LabelMeasure,
    outputs: int = 0,
    strategy: Strategy = FINETUNE,
) -> list[Measure]:
    """Return the measure of each loader, of the predictions of ``strategy``.

    The module is evaluated in eval mode and in the precision of its weights, for every training precision. Its state is
    preserved.
    """
    measures = []
    with preserve_state(module), torch.no_grad():
        for loader in loaders:
            measure = kind(outputs)
            for batch in loader:
                measure.update(module, strategy.predict(module, batch).float(), batch.y)
            measures.append(measure)
    return measures
