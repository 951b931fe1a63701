"""Folders of images, one data set per folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clbench.data.source import PARTS
from clbench.errors import DataError, expected


def image_folders(folders: Sequence[str]) -> list[ImageFolderSource]:
    """Return a source for each folder, for ``TaskSequence`` with ``chain``, so that each folder is a task.

    Args:
        folders: Folders that contain ``train`` and ``test``, and in each of these a subfolder of images per class.

    Raises:
        ConfigError: There is no folder.
    """
    if isinstance(folders, str) or not folders:
        raise DataError(expected("folders", folders, "a list of at least one folder", "Try folders=[photos/summer]."))
    return [ImageFolderSource(folder) for folder in folders]


class ImageFolderSource:
    """Opens the training or test images of one folder as RGB images.

    Args:
        folder: The folder.

    >>> ImageFolderSource("photos/summer").__name__  # in messages
    'summer'
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser()
        self.__name__ = self.folder.resolve().name

    def __call__(self, train: bool) -> Any:
        from torchvision.datasets import ImageFolder  # imported late, because the import is slow

        path = self.folder / PARTS[not train]
        if not path.is_dir():
            raise DataError(
                f"{path}: no such folder. Expected {self.folder} to contain train and test, each with a subfolder of images per "
                "class."
            )
        try:
            return ImageFolder(str(path))
        except FileNotFoundError as error:  # no subfolder, or one without images
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"{path}: expected a subfolder of images for each class ({reason}).") from error
