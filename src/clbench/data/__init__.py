"""Data: sources, cuts of them into tasks, and the Lightning data modules that yield their batches."""

from clbench.data.batches import Batch, Batches
from clbench.data.cuts import chain, permute, rotate, split
from clbench.data.sequence import Task, TaskSequence

__all__ = ["Batch", "Batches", "Task", "TaskSequence", "chain", "permute", "rotate", "split"]
