"""Share the first task, up to its last step, between the runs of a sweep that train it identically."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from clbench.config.display import print_once
from clbench.errors import ConfigError
from clbench.runs.folder import remove_parts
from clbench.training.checkpoint_file import read_checkpoint


class SharedFirstTask:
    """A checkpoint inside the first task from which several runs start, and a lock for the process that trains it.

    The operating system releases the lock when the process ends or is killed, so no other process waits forever.

    Args:
        folder: The sweep's folder of shared first tasks. ``find`` creates it.
        key: Hash of everything that affects the first task, see ``first_task_hash``.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.path = folder / f"{key}.ckpt"
        self._lock = FileLock(folder / f".{key}.lock")

    @property
    def is_trained_here(self) -> bool:
        """Whether this process trains the shared first task."""
        return self._lock.is_locked

    def find(self) -> Path | None:
        """Wait for the process that trains the checkpoint and return its path; None if this process has to train it.

        A damaged checkpoint is trained again.
        """
        if not self._is_usable():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            remove_parts(self.path.parent)
            if not self._is_usable():
                self.path.unlink(missing_ok=True)
                return None
            self.release()
        return self.path

    def _is_usable(self) -> bool:
        if not self.path.exists():
            return False
        try:
            read_checkpoint(self.path, "The first task is trained again.", "run", mmap=True)
        except ConfigError as error:
            print_once(f"warning: {error}")
            return False
        return True

    def release(self) -> None:
        """Release the lock. Other processes then use the checkpoint, or one of them trains it if it does not exist."""
        self._lock.release()
