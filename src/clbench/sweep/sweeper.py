"""Hydra sweeper for grids, which merges equal runs, skips finished ones and uses the same folder for the same command.

Hydra imports its plugins at every start, so heavy modules are imported only when a sweep starts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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


LARGE = 100
"""Number of combinations from which composing them takes a second or more, so that it is announced."""


class GridSweeper(BasicSweeper):
    """Run a grid in a folder that follows from the command.

    Combinations that differ only in options that their strategy does not have are merged into one run. The name of a run
    folder follows from the configuration. Rerunning a command therefore runs only missing runs and resumes interrupted ones.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set the folder of the sweep before the launcher is created, which may write its files there."""
        from clbench.config.compose import GridComposer

        self.hydra_context, self.config = hydra_context, config
        loader: Any = hydra_context.config_loader
        self._compose = GridComposer(loader, config)
        folder = self._folder(self._overrides(config.hydra.overrides.task))
        with read_write(config):
            config.hydra.sweep.dir = str(folder)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Run all runs that are not done, and print a table of all runs.

        Raises:
            SweepFailed: Some runs failed or did not start.
        """
        from clbench.config.keys import check_hydra_keys
        from clbench.errors import ConfigError
        from clbench.runs.sweep_index import add_to_index
        from clbench.sweep.plan import (
            SweepPlan,
            add_metrics_to_complete_runs,
            announce,
            raise_if_unfinished,
            refuse_other_data,
        )
        from clbench.sweep.results import show_results
        from clbench.sweep.selection import check_selection

        assert self.config is not None
        check_hydra_keys(self.config.hydra)
        folder = Path(self.config.hydra.sweep.dir)
        try:
            (grid,) = self.split_arguments(self._overrides(arguments), None)
        except ValueError as error:  # range(1,3,0)
            typed = " ".join(argument for argument in arguments if "(" in argument)
            raise ConfigError(
                f"{typed}: the values cannot be listed ({error}). Try values such as lam=1,10."
            ) from error
        if len(grid) >= LARGE:
            print(f"composing {len(grid):,} combinations", file=sys.stderr, flush=True)
        plan = SweepPlan.of(grid, self._compose, folder)
        plan.check()
        if self.config.select_lam_on_first_tasks is not None:
            check_selection(plan.runs, self.config.select_lam_on_first_tasks)
        refuse_other_data(plan)
        announce(plan)
        if self.config.dry_run:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        add_to_index(folder, self._command(arguments), {run.name: run.overrides for run in plan.runs})
        if self.config.select_lam_on_first_tasks is not None:
            plan = plan.only(self._select(plan, self.config.select_lam_on_first_tasks))
        errors = self.launch(plan.to_do)
        add_metrics_to_complete_runs(plan)
        show_results(plan.runs, plan.complete(), errors, folder)
        raise_if_unfinished(plan)
        return []

    def _select(self, plan: SweepPlan, tasks: int) -> list[PlannedRun]:
        """Learn the first tasks, and return the runs whose lam is selected on them.

        Raises:
            SweepFailed: A run failed for another reason than non-finite weights, with which its lam cannot be selected.
        """
        from clbench.runs.sweep_index import add_selection
        from clbench.sweep.selection import lam_groups, select_lam, show_selection

        groups = [by_lam for by_lam in lam_groups(plan.runs) if len(by_lam) > 1]
        several = [run for by_lam in groups for runs in by_lam for run in runs]
        to_do = [run for run in several if run.learned(plan.folder) < tasks]
        errors = self.launch(to_do, f"stop_after_task={tasks}")
        found = {
            c.name: m for c in several if (m := c.metrics(plan.folder)) is not None and c.learned(plan.folder) >= tasks
        }
        results = select_lam(groups, found, errors, tasks)
        if results:
            show_selection(results, tasks)
        rejected = {run.name for row in results if not row.is_selected for run in row.runs}
        add_selection(plan.folder, [run.name for run in plan.runs], sorted(rejected), tasks)
        return [run for run in plan.runs if run.name not in rejected]

    def plan(self, overrides: Sequence[str]) -> PlannedRun:
        """Return the run with these overrides.

        Raises:
            ConfigError: The configuration is not valid, or the strategy does not have an option.
        """
        from clbench.sweep.grid import plan_runs

        return plan_runs([overrides], self._compose)[0]

    def launch(
        self, runs: Sequence[PlannedRun], *more: str, labels: Mapping[str, str] | None = None
    ) -> dict[str, BaseException]:
        """Launch the runs and return the errors of failed ones, by the name of the run.

        Args:
            runs: The runs.
            more: Additional overrides.
            labels: Labels of the runs in the lines of progress, by the name of the run. By default the varied options.
        """
        from clbench.config.compose import quoted
        from clbench.config.messages import user_message
        from clbench.runs import sweep_log
        from clbench.sweep.grid import run_labels

        assert self.launcher is not None and self.config is not None
        if not runs:
            return {}
        folder = Path(self.config.hydra.sweep.dir)
        sweep_log.begin(folder, run_labels(runs) if labels is None else labels)
        location = f"hydra.sweep.dir={quoted(str(folder))}"
        jobs = [[*run.overrides, *more, location, f"hydra.sweep.subdir={run.name}"] for run in runs]
        try:
            returns = self.launcher.launch(jobs, initial_job_idx=0)
        except KeyboardInterrupt:
            sys.exit("Interrupted. Rerun the same command to resume.")
        except Exception as error:  # the launcher failed, for example because a job was killed, and returned no results
            if type(error).__name__ == "TerminatedWorkerError":  # of joblib
                print("a worker was killed (out of memory?); its unfinished runs were lost", file=sys.stderr)
            else:
                print(f"the launcher failed: {user_message(error) or repr(error)}", file=sys.stderr)
            return {}
        return {
            run.name: done._return_value
            for run, done in zip(runs, returns, strict=True)
            if done.status != JobStatus.COMPLETED
        }

    def _folder(self, overrides: Sequence[Override]) -> Path:
        """Return the folder of the sweep: the given one, or a folder that follows from the command."""
        from clbench.config.options import conf_dir
        from clbench.sweep.grid import stable_folder

        assert self.config is not None
        given = OmegaConf.to_container(self.config, resolve=False)
        assert isinstance(given, dict)
        default = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"), resolve=False)
        assert isinstance(default, dict)
        folders, defaults = ((c["output_dir"], c["hydra"]["sweep"]["dir"]) for c in (given, default))
        if folders != defaults:
            return Path(self.config.hydra.sweep.dir)
        is_varied = [o.is_sweep_override() or o.get_key_element() in self.params for o in overrides]
        keys = [o.get_key_element() for o, many in zip(overrides, is_varied, strict=True) if many]
        fixed = [o.input_line or "" for o, many in zip(overrides, is_varied, strict=True) if not many]
        return stable_folder(*self._compose(fixed), keys)

    def _overrides(self, arguments: Sequence[str]) -> list[Override]:
        """Return the overrides of a sweep preset and of the command. The last override of a key counts."""
        assert self.hydra_context is not None
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        last: dict[str, Override] = {}
        for override in parser.parse_overrides(lines):
            last[override.get_key_element().lstrip("+~")] = override
        return list(last.values())

    def _command(self, arguments: Sequence[str]) -> list[str]:
        """Return all arguments of the command, including those for Hydra."""
        assert self.config is not None
        hydra = self.config.hydra
        folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        for_hydra = [override for override in hydra.overrides.hydra if override != "hydra.mode=MULTIRUN"]
        return [*(part for folder in folders for part in ("--config-dir", folder)), *for_hydra, *arguments]
