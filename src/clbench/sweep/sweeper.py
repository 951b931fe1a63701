"""Hydra's grid sweeper over a stable folder: equal runs run once, finished ones not again, and none hides another.

Hydra scans its plugins at every start, so everything heavy is imported when a sweep begins.
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
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

if TYPE_CHECKING:
    from clbench.sweep.grid import PlannedRun
    from clbench.sweep.plan import SweepPlan


class GridSweeper(BasicSweeper):
    """Hydra's grid sweeper over a stable folder.

    Runs that differ only in an option their strategy does not have are one run. A run has a folder named by its
    configuration, so the same command again runs only what is missing, and resumes runs that were stopped.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Settle where the sweep lies before the launcher is made, which may keep its own files there."""
        self.hydra_context, self.config = hydra_context, config
        folder = self._folder(self._asked(config.hydra.overrides.task))
        with read_write(config):
            config.hydra.sweep.dir = str(folder)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run every run that is not done, print a table of all, and raise if any failed.

        Raises:
            SweepFailed: some runs are not done; the others are.
        """
        from clbench.runs.sweep_index import add_to_index
        from clbench.sweep.plan import SweepPlan, announce, raise_if_unfinished
        from clbench.sweep.results import show_results
        from clbench.sweep.selection import check_selection

        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        (grid,) = self.split_arguments(self._asked(arguments), None)
        plan = SweepPlan.of(grid, self._composed, folder)
        if self.config.select_lam_on_first_tasks is not None:
            check_selection(plan.runs, self.config.select_lam_on_first_tasks)
        announce(plan)
        if self.config.dry_run:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        add_to_index(folder, self._typed(arguments), {run.name: run.overrides for run in plan.runs})
        if self.config.select_lam_on_first_tasks is not None:
            plan = plan.only(self._chosen(plan, self.config.select_lam_on_first_tasks))
        errors = self._run(plan.to_do, folder)
        show_results(plan.runs, plan.complete(), errors, folder)
        raise_if_unfinished(plan)
        return []

    def _chosen(self, plan: SweepPlan, tasks: int) -> list[PlannedRun]:
        """The runs whose lam is the best on the first tasks, which are learned for that.

        Raises:
            SweepFailed: they are not learned; one whose weights became non-finite is, and loses.
        """
        from clbench.sweep.selection import lam_groups, select_lam, show_selection

        groups = [by_lam for by_lam in lam_groups(plan.runs) if len(by_lam) > 1]
        several = [run for by_lam in groups for runs in by_lam for run in runs]
        to_do = [run for run in several if run.learned(plan.folder) < tasks]
        errors = self._run(to_do, plan.folder, f"stop_after_task={tasks}")
        found = {
            c.name: m for c in several if (m := c.metrics(plan.folder)) is not None and c.learned(plan.folder) >= tasks
        }
        tried = select_lam(groups, found, errors, tasks)
        if tried:
            show_selection(tried, tasks)
        losers = {run.name for row in tried if not row.chosen for run in row.runs}
        return [run for run in plan.runs if run.name not in losers]

    def _run(self, runs: Sequence[PlannedRun], folder: Path, *more: str) -> dict[str, BaseException]:
        """Launch the runs, with ``more`` overrides; what went wrong in each, by name."""
        from clbench.config.compose import quoted
        from clbench.runs import sweep_log
        from clbench.sweep.grid import run_labels

        assert self.launcher is not None
        if not runs:
            return {}
        sweep_log.begin(folder, run_labels(runs))
        place = f"hydra.sweep.dir={quoted(str(folder))}"
        jobs = [[*run.overrides, *more, place, f"hydra.sweep.subdir={run.name}"] for run in runs]
        try:
            returns = self.launcher.launch(jobs, initial_job_idx=0)
        except KeyboardInterrupt:
            sys.exit("Interrupted. Rerun the same command to resume.")
        except Exception as error:  # of the launcher, which then knows nothing of any run: a job was killed, say
            if type(error).__name__ == "TerminatedWorkerError":  # of joblib
                print("a worker was killed (out of memory?); its unfinished runs were lost", file=sys.stderr)
            else:
                print(f"the launcher has stopped: {error!r}", file=sys.stderr)
            return {}
        return {
            run.name: done._return_value
            for run, done in zip(runs, returns, strict=True)
            if done.status != JobStatus.COMPLETED
        }

    def _folder(self, asked: Sequence[Override]) -> Path:
        """Where the sweep lies; if that was not said, a folder that follows from the command."""
        from clbench.config.options import conf_dir
        from clbench.sweep.grid import stable_folder

        assert self.config is not None
        said = OmegaConf.to_container(self.config, resolve=False)
        assert isinstance(said, dict)
        usual = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"), resolve=False)
        assert isinstance(usual, dict)
        if said["output_dir"] != usual["output_dir"] or said["hydra"]["sweep"]["dir"] != usual["hydra"]["sweep"]["dir"]:
            return Path(self.config.hydra.sweep.dir)
        is_varied = [o.is_sweep_override() or o.get_key_element() in self.params for o in asked]
        keys = [o.get_key_element() for o, many in zip(asked, is_varied, strict=True) if many]
        fixed = [o.input_line or "" for o, many in zip(asked, is_varied, strict=True) if not many]
        return stable_folder(self._composed(fixed), keys)

    def _asked(self, arguments: Sequence[str]) -> list[Override]:
        """The overrides of a preset and those that were typed; of one key the last."""
        assert self.hydra_context is not None
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        last: dict[str, Override] = {}
        for override in parser.parse_overrides(lines):
            last[override.get_key_element().lstrip("+~")] = override
        return list(last.values())

    def _typed(self, arguments: Sequence[str]) -> list[str]:
        """The arguments of the command, those for Hydra too."""
        assert self.config is not None
        hydra = self.config.hydra
        folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        of_hydra = [override for override in hydra.overrides.hydra if override != "hydra.mode=MULTIRUN"]
        return [*(part for folder in folders for part in ("--config-dir", folder)), *of_hydra, *arguments]

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        assert self.hydra_context is not None and self.config is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
