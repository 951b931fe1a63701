"""``python -m clbench.train strategy=ewc lam=1e5``: config -> objects -> run -> files."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from clbench.config.arguments import errors_as_typed
from clbench.config.display import Display, print_once
from clbench.config.help import ASKS, print_help
from clbench.config.messages import errors_in_one_line, refuse_renamed, reject_dashes, silence_lightning
from clbench.config.options import budget, check_numbers, conf_dir, drop_foreign_options, refuse_foreign_options
from clbench.errors import ConfigError
from clbench.experiment.build import build, build_trainer
from clbench.experiment.checks import check_device, check_precision
from clbench.experiment.describe import describe, flat, plan
from clbench.experiment.session import exclusive_run, open_run_folder, print_status, save_config, shared_first_task_of
from clbench.runs.folder import FINISHED, learned
from clbench.runs.objective import objective
from clbench.training.early_stopping import EarlyStopping
from clbench.training.loggers import LoggerContext
from clbench.training.loop import empty_results, run
from clbench.training.monitor import PenaltyMonitor
from clbench.training.progress_bar import ProgressBar
from clbench.training.timing import total_seconds


@hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """One run; returns the objective, so that a Hydra sweeper can optimise it."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return train(cfg)  # the sweeper shows what failed
    with errors_in_one_line():
        return train(cfg)


@contextmanager
def free_run_memory() -> Iterator[None]:
    """At its end a run's Trainer and data, which refer to each other, are given back; a sweep has many in one process."""
    gc.freeze()  # what was there before, torch among it, is not looked through
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def train(cfg: DictConfig) -> float | None:
    """From configuration to files; see ``main``."""
    with free_run_memory():  # as a decorator it could not be sent to the workers of a sweep
        return _train(cfg)


def _train(cfg: DictConfig) -> float | None:
    began = perf_counter()
    choices = HydraConfig.get().runtime.choices
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    first_process = int(os.environ.get("LOCAL_RANK", 0)) == 0
    refuse_renamed(cfg)
    check_numbers(cfg)
    grid = "UniqueSweeper" in HydraConfig.get().sweeper["_target_"]
    if cfg.select_lam_on_first_tasks is not None and not (sweeping and grid):
        raise ConfigError(
            f"select_lam_on_first_tasks={cfg.select_lam_on_first_tasks} is for a grid: add -m and several values of lam, or "
            "leave it out"
        )
    if cfg.dry_run and not grid:
        raise ConfigError("dry_run=true is for a run and for a grid: what a search runs is not known before")
    if sweeping:
        drop_foreign_options(cfg)
    else:
        refuse_foreign_options(cfg, choices["strategy"])
    if threads := cfg.threads or (1 if sweeping else None):
        torch.set_num_threads(threads)
    check_device(cfg.trainer.accelerator, cfg.trainer.devices)
    check_precision(cfg.trainer.get("precision"))
    silence_lightning()

    folder = open_run_folder(cfg)
    earlier = folder.metrics()
    with (
        exclusive_run(folder, sweeping) if first_process else nullcontext(),
        Display(folder.path / "train.log", quiet=sweeping or not first_process) as display,
        errors_as_typed(cfg),
    ):
        if earlier is not None and earlier["status"] == FINISHED:
            display.note(f"this run is complete, nothing to do: {folder.path}")
            return objective(earlier, cfg.objective)

        sequence, learner, strategy = build(cfg)
        budget(cfg, 0, len(sequence))
        objective(empty_results(sequence), cfg.objective)
        validation = EarlyStopping(cfg.patience, cfg.consolidate)
        display.plan(plan(cfg, choices, sequence, learner))
        if cfg.dry_run:
            return None
        if earlier is not None:
            display.note(f"going on after task {learned(earlier)}/{len(sequence)}")
        if first_process:
            save_config(cfg, folder.path)
        about = describe(cfg, choices, sequence, learner) | {"config_hash": folder.config_hash}
        outside = perf_counter() - began  # of the loop over tasks, in this process and those before
        if earlier is not None:
            outside += earlier["seconds"]["total"] - total_seconds(earlier["seconds"])

        def metrics(results: dict[str, Any], status: str) -> dict[str, Any]:
            return {"status": status, **about, **results}

        def make_trainer(index: int, callbacks: list[Callback]) -> Trainer:
            return build_trainer(cfg, [*callbacks, ProgressBar(display.terminal)], budget(cfg, index, len(sequence)))

        def after_task(index: int, results: dict[str, Any]) -> None:
            so_far = metrics(results, "running")
            folder.write_metrics(so_far)
            display.after_task(index, len(sequence), results["accuracy_matrix"][index], so_far["seconds"]["total"])

        def make_loggers(start: int) -> list[Logger]:
            if not first_process:
                return []
            shared = folder.path.parent if sweeping else folder.path
            flattened = flat(cfg, choices, about) | {"config_hash": folder.config_hash}
            place = LoggerContext(folder.path, shared, start, flattened, print_once if sweeping else display.note)
            return [instantiate(logger)(place) for logger in cfg.logger.values()]

        results = run(
            sequence,
            learner,
            strategy,
            make_trainer,
            folder,
            seed=cfg.seed,
            after_task=after_task,
            validation=validation,
            eval_every=cfg.eval_every,
            make_loggers=make_loggers,
            log_every=cfg.log_every,
            save_every=cfg.save_every,
            shared_first_task=shared_first_task_of(cfg, strategy) if sweeping else None,
            stop_after_task=cfg.stop_after_task,
            doctor=PenaltyMonitor(report=display.warn),
            outside=outside,
        )
        if cfg.stop_after_task is not None and cfg.stop_after_task < len(sequence):
            if sweeping:
                print_status(folder.path, f"{cfg.stop_after_task} of {len(sequence)} tasks")
            return None  # metrics.json has what there is so far
        complete = metrics(results, FINISHED)
        value = objective(complete, cfg.objective)
        if first_process:
            # matplotlib takes long to import: only when there is something to draw
            from clbench.runs.plots import save_plots

            title = f"{choices.strategy} on {cfg.data.name}, seed {cfg.seed}"
            try:
                save_plots(torch.tensor(complete["accuracy_matrix"]), complete["within_tasks"], title, folder.path)
            finally:  # no picture is worth a run
                folder.write_metrics(complete)
            display.summary(complete, folder.path)
            if sweeping:
                said = "-" if value is None else f"{value:.4f}"
                seconds = complete["seconds"]["total"]
                print_status(folder.path, f"{said}, {seconds:.1f} s")
        return value


def cli() -> None:
    """The command ``clbench-train``; ``--dry-run`` is short for ``dry_run=true``, as Hydra has no options of ours."""
    sys.argv = ["dry_run=true" if argument == "--dry-run" else argument for argument in sys.argv]
    with errors_in_one_line():
        if set(ASKS) & set(sys.argv):
            return print_help(sys.argv[1:])
        reject_dashes(sys.argv[1:])
        main()


if __name__ == "__main__":
    cli()
