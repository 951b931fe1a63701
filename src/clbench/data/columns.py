"""Find the images and the labels in data with named columns, such as dictionaries and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Iterable

from clbench.errors import DataError

IMAGES = ("image", "img", "images", "pixel_values", "x")
LABELS = ("label", "labels", "fine_label", "target", "targets", "y")


def image_and_label(names: Iterable[object], name: str) -> tuple[str, str]:
    """Return the names of the column with images and of that with labels.

    Args:
        names: Names of all columns.
        name: Name of the data set for messages.

    Raises:
        ConfigError: One of the two is missing, or several have a known name.

    >>> image_and_label(["img", "fine_label", "coarse_label"], "cifar100")
    ('img', 'fine_label')
    """
    columns = [str(column) for column in names]
    image, label = (_only(columns, known, what, name) for known, what in ((IMAGES, "images"), (LABELS, "labels")))
    return image, label


def _only(columns: list[str], known: tuple[str, ...], what: str, name: str) -> str:
    found = [column for column in columns if column in known]
    if len(found) != 1:
        raise DataError(
            f"data set {name}: expected one column of {what}, named {', '.join(known[:-1])} or {known[-1]}, got the columns "
            f"{', '.join(columns) or 'none'}. Rename the column, or return pairs (image, label)."
        )
    return found[0]
