"""The shared first task: what runs of a sweep have in common, the first task up to its last step, trained once."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from clbench.runs.folder import remove_parts


class SharedFirstTask:
    """A checkpoint inside the first task from which several runs continue, and the lock of the one that trains it.

    The system takes the lock from a process that ends, however it ends, so nobody waits for one that was killed.

    Args:
        folder: The sweep's folder of shared first tasks. It is created when the checkpoint is first looked for.
        key: of all that the runs have in common, see ``first_task_hash``.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self.path = folder / f"{key}.ckpt"
        self._lock = FileLock(folder / f".{key}.lock")

    @property
    def mine(self) -> bool:
        """Whether this process is the one that trains it."""
        return self._lock.is_locked

    def find(self) -> Path | None:
        """The checkpoint, after waiting for the process that trains it; None: this one does, until ``release``."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            remove_parts(self.path.parent)
            if not self.path.exists():
                return None
            self.release()
        return self.path

    def release(self) -> None:
        """Let the others have it; or train it, if this process has not."""
        self._lock.release()
