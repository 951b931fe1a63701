"""Tasks from folders of images, data=image_folders."""

import numpy as np
import pytest
from PIL import Image

from clbench.data import TaskSequence, chain, image_folders
from clbench.errors import ConfigError


@pytest.fixture
def photos(tmp_path):
    """Folders of images of different sizes, summer in colour and winter in grey; cats are dark and dogs are bright."""
    for season, shape in (("summer", (3,)), ("winter", ())):
        for part, number in (("train", 12), ("test", 4)):
            for label, name in enumerate(("cat", "dog")):
                folder = tmp_path / season / part / name
                folder.mkdir(parents=True)
                for i in range(number):
                    pixels = np.full((20 + i, 24, *shape), 20 + 200 * label, dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def test_each_folder_is_a_task_of_its_classes(photos):
    sequence = TaskSequence(
        image_folders([str(photos / "summer"), str(photos / "winter")]), chain, resize=8, batch_size=4
    )
    assert [definition.source.name for definition in sequence.definitions] == ["summer", "winter"]
    for task in sequence:
        assert task.classes == (0, 1)
        for batch in task.train_dataloader():
            assert batch.x.shape[1:] == (3, 8, 8)
            assert ((batch.x.mean((1, 2, 3)) > 0.5).long() == batch.y).all()


def test_the_command_learns_folders_as_tasks(run, photos):
    folders = f"data.source.folders=[{photos / 'summer'},{photos / 'winter'}]"
    result = run(
        "data=image_folders", folders, "scenario=domain", "data.resize=8", "epochs=10", "net.hidden=[8]", "lr=0.01"
    )
    assert result["status"] == "complete" and result["average_accuracy"] == 1


def test_missing_folders_are_named(photos):
    (photos / "empty/train").mkdir(parents=True)
    for folders, message in (
        ([], r"folders=\[\]: expected a list of at least one folder"),
        ([str(photos / "autumn")], "autumn/train: no such folder. Expected .*autumn to contain train and test"),
        ([str(photos / "empty")], "empty/train: expected a subfolder of images for each class"),
    ):
        with pytest.raises(ConfigError, match=message):
            TaskSequence(image_folders(folders), chain, resize=8)


def test_images_of_different_sizes_need_resize(photos):
    with pytest.raises(ConfigError, match=r"Set resize=\[H,W\] for equal sizes"):
        TaskSequence(image_folders([str(photos / "summer")]), chain)
