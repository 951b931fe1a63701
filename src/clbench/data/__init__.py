"""Data sets, splits that turn them into tasks, and Lightning data modules that yield batches of the tasks."""

from clbench.data.batches import Batch, Batches
from clbench.data.folders import image_folders
from clbench.data.sequence import Task, TaskSequence, find_task, task_index, task_of
from clbench.data.splits import chain, permute, rotate, split

__all__ = [
    "Batch",
    "Batches",
    "Task",
    "TaskSequence",
    "chain",
    "find_task",
    "image_folders",
    "permute",
    "rotate",
    "split",
    "task_index",
    "task_of",
]
