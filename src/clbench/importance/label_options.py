"""Options of the Fisher that define the likelihood and its labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

from clbench.errors import expected
from clbench.importance.likelihoods import LIKELIHOODS, Likelihood

LABELS = ("exact", "sample", "empirical", "predicted", "weighted", "reversed")

TRUE_LABELS = ("empirical", "weighted", "reversed")
"""Those of ``LABELS`` that read the labels of the data."""

ONE_LABEL = ("weighted", "reversed")
"""Those of ``LABELS`` that are defined for one label per example, under a softmax."""

REDUCTIONS = ("sum", "mean")


Loss = str | Callable[[Any, Any], Tensor]
"""Name of a likelihood, or a function of outputs and targets that returns the loss of each example, (N,)."""


class LabelArguments(TypedDict, total=False):
    """Arguments of ``fisher`` and of ``EWC`` with the same names, explained at ``fisher``."""

    label_samples: int
    loss: Loss
    reduction: str
    ignore_index: int
    class_dim: int | None


@dataclass(frozen=True)
class LabelOptions:
    """Options of ``fisher`` that define the likelihood and its labels, explained there.

    Raises:
        ValueError: An option is unknown or out of range, or a combination has no meaning.
    """

    labels: str = "exact"
    loss: Loss = "cross_entropy"
    label_samples: int = 1
    reduction: str = "sum"
    ignore_index: int = -100
    class_dim: int | None = None

    def __post_init__(self) -> None:
        for name, value, possible in (("labels", self.labels, LABELS), ("reduction", self.reduction, REDUCTIONS)):
            if value not in possible:
                raise ValueError(expected(name, value, f"one of {', '.join(possible)}"))
        if not callable(self.loss) and self.loss not in LIKELIHOODS:
            raise ValueError(expected("loss", self.loss, f"one of {', '.join(LIKELIHOODS)}, or a function"))
        if isinstance(self.label_samples, bool) or not isinstance(self.label_samples, int) or self.label_samples < 1:
            raise ValueError(expected("label_samples", self.label_samples, "an integer >= 1"))
        for name, number in (("ignore_index", self.ignore_index), ("class_dim", self.class_dim)):
            if isinstance(number, bool) or not isinstance(number, int | (type(None) if name == "class_dim" else int)):
                raise ValueError(expected(name, number, "an integer"))
        if self.loss == "mse" and self.labels == "predicted":
            raise ValueError(
                "labels=predicted with loss=mse: the prediction is the mean, so the Fisher would be zero. Use labels=exact"
            )
        if self.labels in ONE_LABEL and self.loss != "cross_entropy":
            loss = "a function" if callable(self.loss) else self.loss
            raise ValueError(
                f"labels={self.labels} with loss={loss}: expected loss=cross_entropy, because it is defined for one label per "
                "example. Use labels=empirical"
            )
        if callable(self.loss) and (self.labels, self.reduction) != ("empirical", "sum"):
            raise ValueError(
                f"labels={self.labels} reduction={self.reduction} with a function as loss: expected labels=empirical, because a "
                "function has no distribution of labels, and reduction=sum, because it returns one number per example"
            )

    @property
    def reads_labels(self) -> bool:
        """Whether the labels of the data are needed."""
        return self.labels in TRUE_LABELS

    @property
    def likelihood(self) -> Likelihood | None:
        """The distribution of the labels, None if the loss is a function."""
        return LIKELIHOODS[self.loss] if isinstance(self.loss, str) else None

    def columns(self, positions: int, classes: int) -> int:
        """Return the number of backward passes per example.

        Example:
            >>> LabelOptions().columns(1, 1000), LabelOptions(labels="sample", label_samples=3).columns(64, 1000)
            (999, 3)
        """
        if self.labels == "exact" and self.likelihood is not None:
            return self.likelihood.columns(positions, classes)
        return self.label_samples if self.labels == "sample" else 1


def check_options(*, fisher_batch: int = 1, **options: Any) -> LabelOptions:
    """Return the options that define the likelihood and its labels, after a check of them and of ``fisher_batch``.

    Raises:
        ValueError: An option is unknown or out of range, or the combination has no meaning.

    Example:
        >>> check_options(labels="sample", loss="mse", fisher_batch=8).label_samples
        1
    """
    checked = LabelOptions(**options)
    if isinstance(fisher_batch, bool) or not isinstance(fisher_batch, int) or fisher_batch < 1:
        raise ValueError(expected("fisher_batch", fisher_batch, "an integer >= 1"))
    if checked.labels == "exact" and fisher_batch > 1:
        raise ValueError(
            f"fisher_batch={fisher_batch} with labels=exact is exactly 1/{fisher_batch} of the value at fisher_batch=1, "
            f"because labels are independent. Use fisher_batch=1 and divide lam by {fisher_batch}"
        )
    if checked.labels == "weighted" and fisher_batch > 1:
        raise ValueError(
            f"fisher_batch={fisher_batch} with labels=weighted: expected 1, because each example has a weight of its own. Use "
            "fisher_batch=1, or labels=empirical"
        )
    return checked
