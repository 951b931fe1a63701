"""Run the runs of a study through the sweeper, in a folder where finished runs are found again."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from clbench.config.messages import user_message
from clbench.config.values import check_annotations, check_rules
from clbench.errors import ConfigError, SweepFailed, Unstable
from clbench.experiment.build import construct
from clbench.runs.folder import atomically, lock_folder
from clbench.runs.json_files import COMPLETE
from clbench.strategies import Strategy
from clbench.study.definition import Row, Study
from clbench.study.origin import origin_of_run
from clbench.study.plan import Cell, decisive_runs, needed_runs, number_of_cells, search
from clbench.sweep.estimate import estimate_cost
from clbench.sweep.grid import PlannedRun
from clbench.sweep.open import open_sweeper
from clbench.train import start

if TYPE_CHECKING:
    from clbench.sweep.sweeper import GridSweeper


class StudyRuns:
    """Folder with the runs of a study.

    Args:
        sweeper: Sweeper that launches the runs.
        folder: Folder of the runs.
        launch: Override that chooses the launcher.
        typed: Overrides of every run that do not affect its results. By default, a run has no checkpoints and no loggers.
    """

    def __init__(self, sweeper: GridSweeper, folder: Path, launch: str, typed: Sequence[str]) -> None:
        self.sweeper, self.folder, self.launch, self.typed = sweeper, folder, launch, typed
        self.planned = cache(self._planned)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, overrides: Sequence[str]) -> Iterator[StudyRuns]:
        """Yield the runs in ``folder``.

        Args:
            folder: Folder of the runs.
            overrides: Overrides of the command, for the launcher or for every run.
        """
        launcher, typed = divide(overrides)
        launch = next((text for text in launcher if text.startswith("launch=")), "launch=joblib")
        with open_sweeper(list(dict.fromkeys([launch, *launcher])), folder, train_run) as sweeper:
            yield cls(sweeper, folder, launch, typed)

    def _planned(self, cell: Cell) -> PlannedRun:
        return self.sweeper.plan([*cell.arguments, *more_overrides(cell.overrides, [self.launch, *self.typed])])

    def check(self, study: Study) -> None:
        """Compose the first runs of every row, so that errors are found before any run starts.

        Raises:
            ConfigError: An override or a value is not valid, options are to be chosen on validation data and there are none,
                or an override of the command affects the results.
        """
        for row in study.rows:
            with _naming(f"{study.name}: row {row.name}"):
                for cell in needed_runs(row, {}):
                    check_rules(cfg := self.planned(cell).cfg)
                    check_annotations(cfg)
                    construct(cfg, "strategy", Strategy)
                for rule in row.select:
                    if rule.on == "validation" and not self._have_validation_data(search(row, rule, {})[0][0][1]):
                        raise ConfigError(
                            "select: expected validation data, got data.validation=0. Add data.validation=0.1 to the "
                            "overrides of select, or use on: test."
                        )
        first = [needed_runs(row, {})[0] for row in study.rows]
        for text in self.typed:
            if any(_sets(cell.overrides, text.lstrip("+").partition("=")[0]) for cell in first):
                raise ConfigError(f"{text}: rows of the study set this option. Change it in the file of the study.")
        if any(self.planned(cell).hash != self.sweeper.plan([*cell.arguments, self.launch]).hash for cell in first):
            raise ConfigError(
                f"{' '.join(self.typed)}: expected overrides that do not affect the results, such as launch=slurm or "
                "data_dir=data. Write the others into the file of the study."
            )

    def _have_validation_data(self, trials: Sequence[Cell]) -> bool:
        return all(self.planned(cell).cfg.data.get("validation") != 0 for cell in trials)

    def hash(self, cell: Cell) -> str:
        """Return the configuration hash of a run."""
        return self.planned(cell).hash

    def metrics(self, cell: Cell) -> dict[str, Any] | None:
        """Return metrics.json of a run with its origin, None if unfinished, or the reason under ``diverged``."""
        run = self.planned(cell)
        folder = self.folder / run.name
        if (reason := folder / "diverged.txt").exists():
            return {"diverged": reason.read_text(encoding="utf-8")}
        found, origin = run.metrics(self.folder), read_origin(folder / "origin.json")
        if found is None or found["status"] != COMPLETE or origin is None:
            return None
        return {**found, "origin": origin}

    def finish(self, study: Study) -> Mapping[Cell, Any]:
        """Run the missing runs of a study and return the metrics of all runs.

        Raises:
            ConfigError: All points of a grid diverged.
            SweepFailed: Runs failed or did not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        results: dict[Cell, Any] = {}
        with lock_folder(self.folder, str(self.folder), "name another folder by --output"):
            while True:
                rows: dict[Cell, Row] = {}
                for row in study.rows:
                    rows |= {cell: row for cell in needed_runs(row, results) if cell not in rows}
                new = [cell for cell in rows if cell not in results]
                results |= {cell: metrics for cell in new if (metrics := self.metrics(cell)) is not None}
                missing = {cell: rows[cell] for cell in new if cell not in results}
                if not new:
                    shutil.rmtree(self.folder / "shared_first_tasks", ignore_errors=True)
                    return results
                if missing:
                    total = max(len(rows), number_of_cells(study))
                    done = len(rows) - len(missing)
                    print(f"{study.name}: {done} runs done, {total - done} left", file=sys.stderr, flush=True)
                    self._launch(study, missing, results)

    def _launch(self, study: Study, missing: Mapping[Cell, Row], results: Mapping[Cell, Any]) -> None:
        """Launch the runs of one round. A diverged run is written down, so that it is not tried again.

        Raises:
            SweepFailed: Runs failed or did not start.
        """
        runs = {self.planned(cell).name: self.planned(cell) for cell in missing}
        labels = {self.planned(cell).name: label(cell, row) for cell, row in missing.items()}
        errors = self.sweeper.launch(list(runs.values()), labels=labels)
        needed = {cell for row in study.rows for cell in decisive_runs(row, results)}
        for cell in missing.keys() - needed:
            name = self.planned(cell).name
            if isinstance(error := errors.get(name), Unstable):
                _write(self.folder / name / "diverged.txt", f"{user_message(error)}\n")
                del errors[name]
        undone = [cell for cell in missing if self.metrics(cell) is None]
        if undone:
            reasons = {
                f"{labels[n]}: {user_message(error) or repr(error)}" for n, error in errors.items() if n in labels
            }
            more = f" ({'; '.join(sorted(reasons)[:3])})" if reasons else ""
            raise SweepFailed(
                f"{len(undone)} of {len(missing)} runs are not done{more}. The others are kept; rerun the same command."
            )

    def describe(self, study: Study) -> str:
        """Return the number of runs, and the estimated cost of those known so far that are not done."""
        cells = {cell for row in study.rows for cell in needed_runs(row, {})}
        to_do = {run.name: run for run in map(self.planned, cells) if not run.is_done(self.folder)}
        total = number_of_cells(study)
        text = f"{total} runs in {self.folder}, {len(cells) - len(to_do)} of them done"
        later = f"; {total - len(cells)} more follow when options are chosen" if total > len(cells) else ""
        return f"{text}\n{len(to_do)} runs to do now: {estimate_cost(list(to_do.values()))}{later}" if to_do else text


def more_overrides(overrides: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return the overrides that a run has in addition to its own: no checkpoints, no loggers, and those of the command."""
    common = dict(text.partition("=")[::2] for text in ("checkpoints=none", "logger=none", *typed))
    return [f"{key}={value}" for key, value in common.items() if not _sets(overrides, key)]


def divide(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the overrides of the command into those for the launcher and those for every run."""
    launcher = [text for text in overrides if text.startswith(("launch=", "hydra.", "hydra/"))]
    return launcher, [text for text in overrides if text not in launcher]


def read_origin(file: Path) -> dict[str, Any] | None:
    """Return the origin of a run, None if it is missing or damaged, in which case the run writes it again."""
    try:
        origin = json.loads(file.read_text(encoding="utf-8"))
        return {key: origin[key] for key in ("commit", "machine")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def label(cell: Cell, row: Row) -> str:
    """Return the label of a run in the lines of progress: the row, the point of its grid, and the seed."""
    point = [text for text in cell.overrides if text.partition("=")[0] in row.grid]
    return " ".join([row.name, *point, f"seed={cell.seed}"])


def train_run(cfg: DictConfig) -> float | None:
    """Train a run that Hydra started, and write its origin, which marks it as finished."""
    objective = start(cfg)
    text = json.dumps(origin_of_run(), indent=2)
    _write(Path(HydraConfig.get().runtime.output_dir) / "origin.json", f"{text}\n")
    return objective


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put ``where`` before the message of an error that the user caused."""
    try:
        yield
    except Exception as error:
        if not (message := user_message(error)):
            raise
        raise ConfigError(f"{where}: {message}") from error


def _sets(overrides: Sequence[str], key: str) -> bool:
    return any(override.lstrip("+").startswith(f"{key}=") for override in overrides)


def _write(path: Path, text: str) -> None:
    atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
