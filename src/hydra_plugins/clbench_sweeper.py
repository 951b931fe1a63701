"""The sweeper of clbench: Hydra's own grid, in which equal runs run once and a failed run hides no other.

It lies in ``hydra_plugins`` because Hydra takes sweepers from nowhere else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf


class UniqueSweeper(BasicSweeper):
    """Hydra's grid sweeper; cells that differ only in an option their strategy does not have run once."""

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run every different cell, print a table of what came out, and raise if any failed.

        Raises:
            SweepFailed: some runs failed; the others are done.
        """
        from clbench.sweep import SweepFailed, report_line, show_results

        assert self.config is not None and self.launcher is not None
        given = [f"{key}={value}" for key, value in self.params.items()] + arguments
        overrides = OverridesParser.create(config_loader=self.config_loader).parse_overrides(given)
        (cells,) = self.split_arguments(overrides, None)
        runs = self._different(cells)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        print(report_line(len(runs), len(cells), folder), file=sys.stderr)
        returns = list(self.launcher.launch(runs, initial_job_idx=0))
        show_results(runs, returns, folder)
        failed = sum(r.status != JobStatus.COMPLETED for r in returns)
        if failed:
            raise SweepFailed(f"{failed} of {len(runs)} runs failed, see the table; the others are done, in {folder}")
        return returns

    def _different(self, cells: Sequence[Sequence[str]]) -> list[list[str]]:
        """The cells whose configurations differ, each composed once (so a wrong override is found before any run)."""
        from clbench.config import config_hash, drop_foreign_options

        runs: dict[str, list[str]] = {}
        for cell in cells:
            cfg: Any = self.config_loader.load_sweep_config(self.config, list(cell))
            OmegaConf.set_readonly(cfg, False)
            OmegaConf.set_struct(cfg, False)
            cfg.pop("hydra")
            drop_foreign_options(cfg)
            runs.setdefault(config_hash(cfg), list(cell))
        return list(runs.values())

    @property
    def config_loader(self) -> Any:
        assert self.hydra_context is not None
        return self.hydra_context.config_loader
