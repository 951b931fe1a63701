"""Show the best run of a search, whose sweeper, such as Optuna, chooses the runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf


class ShowBestRun(Callback):
    """Print the runs of a search from the best to the worst, the folder of the best one, and the command that repeats it.

    A callback of Hydra: ``hydra.callbacks.best_run._target_: clbench.sweep.search.ShowBestRun``.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the runs in the folder of the sweep. Runs that are not complete are listed last and are never the best."""
        from clbench.config.display import console, print_named_rows
        from clbench.metrics.quality import quality_of
        from clbench.runs.find import find_runs, read_run
        from clbench.runs.json_files import COMPLETE
        from clbench.runs.objective import better_direction, objective

        if config.dry_run:
            return
        values: dict[Path, float] = {}
        texts: dict[Path, str] = {}
        found = {run.folder: run for run in map(read_run, find_runs([Path(config.hydra.sweep.dir)]))}
        for folder, run in found.items():
            value = None if run.metrics is None else objective(run.metrics, config.objective, config.metrics.extra)
            status = "failed" if run.metrics is None else run.metrics["status"]
            texts[folder] = f"{value:.4f}" if value is not None else "-" if run.problem is None else run.problem
            if value is not None and status == COMPLETE:
                values[folder] = value
            elif value is not None:
                texts[folder] += f" ({status})"
        qualities = (quality_of(run.metrics) for run in found.values() if run.metrics is not None)
        direction = OmegaConf.select(config, "hydra.sweeper.direction")
        direction = direction or next((better_direction(quality, config.objective) for quality in qualities), None)
        sign = 1 if direction == "minimize" else -1
        ordered = [*sorted(values, key=lambda folder: sign * values[folder]), *(found.keys() - values.keys())]
        keys = list(dict.fromkeys(key for folder in ordered for key in _varied(found[folder].overrides, config)))
        rows = [
            [*(_varied(found[folder].overrides, config).get(key, "-") for key in keys), texts[folder]]
            for folder in ordered
        ]
        print_named_rows([str(folder) for folder in ordered], ["run", *keys, "objective"], rows)
        if not values:
            return
        best = ordered[0]
        typed = [text for text in found[best].overrides if not text.startswith(("sweep=", "output_dir="))]
        folders = [source.path for source in config.hydra.runtime.config_sources if source.provider == "command-line"]
        command = ["clbench", "train", *(part for path in folders for part in ("--config-dir", path)), *typed]
        changed = " ".join(f"{key}={value}" for key, value in _varied(typed, config).items())
        for line in (f"best: {texts[best]} with {changed}", f"its folder: {best}", f"repeat it: {shlex.join(command)}"):
            console().print(line, soft_wrap=True, markup=False, emoji=False)


def _varied(overrides: list[str], config: DictConfig) -> dict[str, str]:
    """Return the overrides of a run that the command did not fix."""
    fixed = set(config.hydra.overrides.task)
    return dict(override.split("=", 1) for override in overrides if override not in fixed and "=" in override)
