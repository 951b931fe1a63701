"""Save and load task checkpoints and mid-task checkpoints, from which a run resumes bit-identically."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L

from clbench.config.hashing import SCHEMA
from clbench.data import task_of
from clbench.data.fingerprint import check_same_data
from clbench.errors import ConfigError, expected
from clbench.nets.torch_file import write_file
from clbench.runs.folder import RunFolder, checkpoints
from clbench.seeding import random_states, set_random_states
from clbench.training.checkpoint_file import AtomicCheckpointIO, read_checkpoint
from clbench.training.shared_first_task import SharedFirstTask
from clbench.training.timing import Stopwatch, total_seconds


class Checkpoints:
    """The checkpoints of a run: one after each task, and the newest one inside the current task.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def save(self, task: int, state: dict[str, Any]) -> None:
        """Write the task checkpoint after ``task`` and remove outdated checkpoints."""
        if self.folder.checkpoints == "none":
            return
        folder = self.folder.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        state = {"schema": SCHEMA, "config_hash": self.folder.config_hash, "task": task, **state}
        write_file(folder / f"task_{task}.ckpt", state)
        earlier = list(checkpoints(self.folder.path).values())[:-1] if self.folder.checkpoints == "last" else []
        for old in [*earlier, *folder.glob("mid_task_*.ckpt")]:
            old.unlink()

    def load(self) -> dict[str, Any] | None:
        """Return the newest task checkpoint, on the CPU; None if there is none.

        Raises:
            ConfigError: The checkpoint is damaged, or belongs to another configuration.
        """
        saved = checkpoints(self.folder.path)
        if not saved:
            return None
        task, path = saved.popitem()
        before = f"resume after task {max(saved) + 1}" if saved else "start over"
        remedy = f"Delete checkpoints/{path.name} to {before}."
        state = read_checkpoint(path, remedy)
        self._check(path, state, task, remedy)
        return state

    def mid_task_path(self, task: int) -> Path:
        """Return the path of the mid-task checkpoint of ``task``."""
        return self.folder.path / "checkpoints" / f"mid_task_{task}.ckpt"

    def find_mid_task(self, task: int) -> Path | None:
        """Return the path of the mid-task checkpoint of ``task``, None if there is none.

        Raises:
            ConfigError: The checkpoint is damaged, or belongs to another configuration.
        """
        path = self.mid_task_path(task)
        if not path.exists():
            return None
        remedy = f"Delete checkpoints/{path.name} to start task {task + 1} from its beginning."
        self._check(path, read_checkpoint(path, remedy, "run", mmap=True)["run"], task, remedy)
        return path

    def _check(self, path: Path, about: Mapping[str, Any], task: int, remedy: str) -> None:
        if about["config_hash"] != self.folder.config_hash:
            raise ConfigError(
                f"{path} belongs to another run (expected config {self.folder.config_hash}, got {about['config_hash']}). Try "
                "another output_dir, or remove the file."
            )
        if about.get("task", task) != task:  # mid-task checkpoints of older versions have no task
            raise ConfigError(f"{path}: expected the state of task index {task}, got that of {about['task']}. {remedy}")


class MidTaskCheckpoint(L.Callback):
    """Callback that saves mid-task checkpoints and starts runs from a shared first task. It must be the last callback.

    A mid-task checkpoint is a Lightning checkpoint of the learner, the optimiser, the loops and every callback. Its key
    ``run`` adds the random states, the seconds and the config hash. It is written directly after an optimiser step, but never
    after the last step of an epoch, because the code between two epochs would then run twice or not at all. A checkpoint due
    at that step is written one step later.

    Args:
        folder: The run's folder, which contains the checkpoints.
        seconds: Stopwatch of the run.
        every: Steps between two checkpoints, None for no mid-task checkpoints.
        shared_first_task: First task that is trained once for several runs, None for no sharing.

    Attributes:
        shared: Key of the shared first task that the run trained or started from.

    Raises:
        ConfigError: ``every`` is below 1, or the folder keeps no checkpoints.
    """

    def __init__(
        self,
        folder: RunFolder,
        seconds: Stopwatch,
        every: int | None = None,
        shared_first_task: SharedFirstTask | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ConfigError(expected("save_every", every, "an integer >= 1 or null"))
        if every is not None and folder.checkpoints == "none":
            raise ConfigError(
                f"save_every={every} with checkpoints=none: resuming inside a task needs the checkpoint of the previous task. "
                "Try checkpoints=last."
            )
        self.folder = folder
        self.checkpoints = Checkpoints(folder)
        self.seconds = seconds
        self.every = every
        self.shared_first_task = shared_first_task
        self.shared: str | None = None
        self._random: dict[str, Any] | None = None
        self._index = self._step = self._saved = 0
        self._fork: int | None = None

    @contextmanager
    def learning(self, index: int, trainer: L.Trainer) -> Iterator[Path | None]:
        """Yield the checkpoint from which the fit of task ``index`` resumes, None if the fit starts from the beginning."""
        self._index, self._fork = index, None
        checkpoint = self.checkpoints.find_mid_task(index)
        if checkpoint is None and index == 0 and self.shared_first_task is not None and trainer.world_size == 1:
            checkpoint = self.shared_first_task.find()
        try:
            yield checkpoint
        finally:
            if self.shared_first_task is not None:
                self.shared_first_task.release()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = self._saved = trainer.global_step
        if self.shared_first_task is not None and self.shared_first_task.is_trained_here:
            self._fork = last_step_inside(trainer)
            if self._fork is None:
                self.shared_first_task.release()
        if self._random is not None:
            set_random_states(self._random, pl_module.device)
            self._random = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:
            return  # gradients are being accumulated
        self._step = step
        if batch_idx + 1 == trainer.num_training_batches or step == trainer.max_steps:
            return
        if self.shared_first_task is not None and step == self._fork:
            self.shared = self.shared_first_task.key
            trainer.save_checkpoint(self.shared_first_task.path)
            self.shared_first_task.release()
        if self.every is not None and step - self._saved >= self.every:
            self._saved = step
            trainer.save_checkpoint(self.checkpoints.mid_task_path(self._index))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {
            "schema": SCHEMA,
            "config_hash": self.folder.config_hash,
            "task": self._index,
            "random": random_states(pl_module.device),
            "seconds": self.seconds.spent(),
            "shared_first_task": self.shared,
            "fingerprint": task_of(trainer).sequence.fingerprint,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        run = checkpoint["run"]
        check_same_data(run.get("fingerprint"), task_of(trainer).sequence.fingerprint, self.folder.path)
        self._random = run["random"]  # set in on_train_start, because other code draws random numbers until then
        self.seconds.load(run["seconds"])
        self.shared = run["shared_first_task"]
        if self.shared_first_task is not None and trainer.ckpt_path == self.shared_first_task.path:
            self.seconds.shared = total_seconds(run["seconds"])


def last_step_inside(trainer: L.Trainer) -> int | None:
    """Return the last optimiser step of a fit that ends neither an epoch nor the fit; None if none exists or is known."""
    steps = trainer.estimated_stepping_batches
    in_epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
    if steps == float("inf") or in_epoch == float("inf"):
        return None
    return next((step for step in range(int(steps) - 1, 0, -1) if step % in_epoch), None)
