"""Qualities of a task: what the matrix R[i, j] contains, and whether higher or lower values are better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DIRECTIONS = ("higher", "lower")


@dataclass(frozen=True)
class Quality:
    """Record of a quality.

    Attributes:
        name: Name in metrics.json.
        meaning: Meaning in a few words.
        direction: Which values are better, ``higher`` or ``lower``.
        is_share: Whether the values are in [0, 1]. Otherwise they are at least 0.
        label: The name in text, by default with spaces.

    >>> QUALITIES["bits_per_byte"].label
    'bits per byte'
    """

    name: str
    meaning: str
    direction: str = "higher"
    is_share: bool = True
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name.replace("_", " "))

    @property
    def higher_is_better(self) -> bool:
        return self.direction == "higher"

    @property
    def sign(self) -> int:
        """Factor after which higher values are better: 1 or -1."""
        return 1 if self.higher_is_better else -1

    def key(self, name: str) -> str:
        """Return the key in metrics.json of a metric or matrix whose name contains ``accuracy``.

        >>> QUALITIES["accuracy"].key("average_accuracy"), QUALITIES["mean_iou"].key("average_accuracy")
        ('average_accuracy', 'average_quality')
        """
        return name if self.name == "accuracy" else name.replace("accuracy", "quality")

    def describe(self) -> dict[str, str]:
        """Return the entry ``quality`` of metrics.json, which ``quality_of`` reads."""
        return {"name": self.name, "direction": self.direction}


_RECORDS = (
    Quality("accuracy", "share of the examples whose label is predicted"),
    Quality("mean_average_precision", "average precision of a label, mean over the labels", label="mAP"),
    Quality(
        "mean_iou",
        "intersection of predicted and true positions over their union, mean over the classes",
        label="mean IoU",
    ),
    Quality("bits_per_byte", "negative log2-likelihood per byte of text", direction="lower", is_share=False),
    Quality("bits_per_token", "negative log2-likelihood per token", direction="lower", is_share=False),
    Quality("mse", "mean squared error", direction="lower", is_share=False, label="MSE"),
)

QUALITIES = {quality.name: quality for quality in _RECORDS}
"""Qualities by name."""

ACCURACY = QUALITIES["accuracy"]


def quality_of(results: Mapping[str, Any]) -> Quality:
    """Return the quality of a run from its metrics.json. Files of versions without the entry contain accuracies.

    >>> quality_of({"quality": {"name": "mse", "direction": "lower"}}).higher_is_better
    False
    """
    found = results.get("quality")
    return ACCURACY if found is None else QUALITIES[found["name"]]
