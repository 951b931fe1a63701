"""Describe how a run was started: by the command, by a sweep or from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig


@dataclass(frozen=True)
class Launch:
    """Description of how and where a run was started.

    Args:
        folder: Absolute path of the run folder.
        hydra: Hydra's settings, under the key ``hydra``.
        sweep: Folder of the sweep, None for a single run. Runs of a sweep drop the options that their strategy does not
            have, share first tasks, use one thread each and print one line when they end.
        quiet: Whether to print the plan, the progress and the summary to ``train.log`` only.
    """

    folder: Path
    hydra: DictConfig
    sweep: Path | None = None
    quiet: bool = False

    @property
    def choices(self) -> DictConfig:
        """The choice of each configuration group."""
        choices: DictConfig = self.hydra.hydra.runtime.choices
        return choices

    @property
    def is_grid(self) -> bool:
        """Whether a sweep of this configuration is a grid, whose runs are known in advance."""
        return "UniqueSweeper" in self.hydra.hydra.sweeper["_target_"]
