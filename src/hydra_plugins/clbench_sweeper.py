"""The sweeper of clbench: Hydra's own grid, in which equal runs run once, finished ones not again, and none hides another.

It lies in ``hydra_plugins`` because Hydra takes sweepers from nowhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, OmegaConf, read_write

if TYPE_CHECKING:
    from clbench.sweep.cells import Cell
    from clbench.sweep.work import Work


class UniqueSweeper(BasicSweeper):
    """Hydra's grid sweeper over a stable folder.

    Cells that differ only in an option their strategy does not have run once. A run has a folder named by its
    configuration, so the same command again runs only what is missing, and goes on inside runs that were stopped.
    """

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run every cell that is not done, print a table of all, and raise if any failed.

        Raises:
            SweepFailed: some runs failed; the others are done.
        """
        from clbench.sweep.index import add_to_index
        from clbench.sweep.results import show_results
        from clbench.sweep.work import Work, before, failed

        assert self.config is not None
        asked = self._parsed([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        folder = self._folder(asked)
        (grid,) = self.split_arguments(asked, None)
        work = Work.of(grid, self._composed, folder)
        before(work)
        if self.config.dry_run:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        add_to_index(folder, arguments, work.cells)
        errors: dict[str, BaseException] = {}
        if self.config.choose_lam_on is not None:
            work = work.only(self._chosen(work, self.config.choose_lam_on, errors))
        errors |= self._run(work.to_do, folder)
        show_results(work.cells, work.complete(), errors, folder)
        failed(work)
        return []

    def _chosen(self, work: Work, tasks: int, errors: dict[str, BaseException]) -> list[Cell]:
        """The cells whose lam is the best on the first tasks, which are learned for that."""
        from clbench.sweep.choice import choose, contested, show_choice

        groups = contested(work.cells)
        several = [cell for by_lam in groups if len(by_lam) > 1 for cells in by_lam for cell in cells]
        errors |= self._run([c for c in several if c.learned(work.folder) < tasks], work.folder, f"first_tasks={tasks}")
        found = {
            c.name: m for c in several if (m := c.metrics(work.folder)) is not None and c.learned(work.folder) >= tasks
        }
        tried = choose([by_lam for by_lam in groups if len(by_lam) > 1], found, tasks)
        show_choice(tried, tasks)
        losers = {cell.name for row in tried if not row.chosen for cell in row.cells}
        return [cell for cell in work.cells if cell.name not in losers]

    def _run(self, cells: Sequence[Cell], folder: Path, *more: str) -> dict[str, BaseException]:
        """Launch the runs, with ``more`` overrides; what went wrong in each, by name."""
        from clbench.sweep import progress
        from clbench.sweep.cells import labels

        assert self.launcher is not None
        if not cells:
            return {}
        progress.begin(folder, labels(cells))
        place = f"hydra.sweep.dir={folder}"
        jobs = [[*cell.overrides, *more, place, f"hydra.sweep.subdir={cell.name}"] for cell in cells]
        try:
            returns = self.launcher.launch(jobs, initial_job_idx=0)
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on with what is missing")
        except Exception as error:
            if type(error).__name__ != "TerminatedWorkerError":  # of joblib, which then knows nothing of any run
                raise
            print("a worker was killed (for want of memory?), and with it the runs that had begun", file=sys.stderr)
            return {}
        return {
            cell.name: done._return_value
            for cell, done in zip(cells, returns, strict=True)
            if done.status != JobStatus.COMPLETED
        }

    def _folder(self, asked: Sequence[Override]) -> Path:
        """Where the sweep lies; if that was not said, a folder that follows from the command."""
        from clbench.sweep.cells import stable_folder

        assert self.config is not None
        if not any(o.get_key_element() in ("output_dir", "hydra.sweep.dir") for o in asked):
            varied = [o.get_key_element() for o in asked if o.is_sweep_override()]
            fixed = [override.input_line or "" for override in asked if not override.is_sweep_override()]
            with read_write(self.config):
                self.config.hydra.sweep.dir = str(stable_folder(self._composed(fixed), varied))
        return Path(self.config.hydra.sweep.dir)

    def _parsed(self, arguments: Sequence[str]) -> list[Override]:
        assert self.hydra_context is not None
        return OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(list(arguments))

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        assert self.hydra_context is not None and self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
