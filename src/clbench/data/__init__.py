"""Data sets, splits that turn them into tasks, and Lightning data modules that yield batches of the tasks."""

from clbench.data.batches import Batch, Batches
from clbench.data.digit_masks import DigitMasks, digit_masks
from clbench.data.digit_tasks import DigitMass, TwoDigits
from clbench.data.folders import image_folders
from clbench.data.sequence import TaskSequence
from clbench.data.splits import chain, permute, rotate, split
from clbench.data.tables import csv_files
from clbench.data.task import Task, find_task, task_index, task_of
from clbench.data.text import text_domains, text_folders

__all__ = [
    "Batch",
    "Batches",
    "DigitMasks",
    "DigitMass",
    "Task",
    "TaskSequence",
    "TwoDigits",
    "chain",
    "csv_files",
    "digit_masks",
    "find_task",
    "image_folders",
    "permute",
    "rotate",
    "split",
    "task_index",
    "task_of",
    "text_domains",
    "text_folders",
]
