"""Run one configuration, from its checks to the files in its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from time import perf_counter
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from clbench.config.arguments import translate, translate_errors
from clbench.config.display import Display, print_once
from clbench.config.keys import check_hydra_keys, check_keys
from clbench.config.known_names import refuse_renamed
from clbench.config.messages import silence_lightning
from clbench.config.options import budget, drop_foreign_options, refuse_foreign_options, refuse_other_names
from clbench.config.values import check_annotations, check_rules
from clbench.data.fingerprint import check_same_data
from clbench.experiment.build import build, build_logger, build_trainer, construct
from clbench.experiment.checks import (
    check_device,
    check_launch,
    check_precision,
    check_processes,
    classifier_in_body,
    examples_left_out,
)
from clbench.experiment.describe import compare_with_current_data, describe, fingerprint_in, flat, plan
from clbench.experiment.launch import Launch
from clbench.experiment.session import (
    discard_unused_folder,
    exclusive_run,
    open_run_folder,
    print_status,
    restore_config,
    save_config,
    shared_first_task_of,
)
from clbench.metrics.quality import quality_of
from clbench.metrics.registry import load_metrics
from clbench.metrics.results import evaluated_data, read_matrix
from clbench.runs.folder import is_finished
from clbench.runs.json_files import COMPLETE, PARTIAL, RUNNING
from clbench.runs.nesting import check_new_run
from clbench.runs.objective import add_new_metrics, check_direction, objective
from clbench.training.loggers import LoggerContext
from clbench.training.loop import LoopOptions, TaskLoop, empty_results
from clbench.training.progress_bar import ProgressBar
from clbench.training.timing import total_seconds


class Experiment:
    """One run of a configuration; ``clbench.train.train`` calls its methods in order.

    Args:
        cfg: The composed configuration, without the key ``hydra``. In a sweep, options that the strategy does not have are
            set to null.
        launch: Where and how the run was started.

    Attributes:
        folder: The run's folder.
        display: The terminal and ``train.log``, while the experiment is open.
        earlier: metrics.json of an earlier process, None if there is none.
        sequence: The tasks, once built.
        learner: The module that learns them, once built.
        strategy: The strategy against forgetting, once built.
        metrics: All metrics by name, including those of the user, once built.
        loop: The loop over the tasks, once built.
        about: The entries of metrics.json that describe the run, once built.

    Raises:
        ConfigError: The configuration cannot be trained, or the folder belongs to another run.
    """

    def __init__(self, cfg: DictConfig, launch: Launch) -> None:
        self._began = perf_counter()
        self.cfg = cfg
        self.launch = launch
        self.is_first_process = int(os.environ.get("LOCAL_RANK", 0)) == 0
        try:
            self.check()
            self.folder = open_run_folder(cfg, launch.choices, launch.folder)
        except Exception:  # OmegaConf raises other errors for references that it cannot resolve
            if launch.sweep is None:
                discard_unused_folder(launch.folder)
            raise

    def check(self) -> None:
        """Raise ConfigError for mistakes that can be found before anything is built."""
        check_new_run(self.launch.folder, self.launch.sweep)
        refuse_renamed(self.cfg)
        check_keys(self.cfg, self.launch.choices)
        check_hydra_keys(self.launch.hydra.hydra)
        refuse_other_names(self.cfg)
        check_rules(self.cfg)
        check_launch(self.cfg, self.launch)
        if self.launch.sweep is None:
            typed: Any = OmegaConf.to_container(self.launch.hydra.hydra.overrides.task, resolve=False)
            refuse_foreign_options(self.cfg, self.launch.choices["strategy"], typed)
        drop_foreign_options(self.cfg)
        check_device(self.cfg.trainer.accelerator)
        check_precision(self.cfg.trainer.get("precision"))
        check_annotations(self.cfg)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the folder, open the display and set the number of threads until the experiment ends or fails."""
        silence_lightning()
        lock = exclusive_run(self.folder, self.launch.sweep) if self.is_first_process else nullcontext()
        quiet = self.launch.quiet or not self.is_first_process
        threads = self.cfg.threads or (None if self.launch.sweep is None else 1)
        log = self.folder.path / "train.log"
        with lock, torch_threads(threads), Display(log, quiet) as self.display, translate_errors(self.cfg):
            self.earlier = self.folder.metrics()
            yield

    @property
    def is_finished(self) -> bool:
        """Whether an earlier process has learned all tasks."""
        return self.earlier is not None and is_finished(self.earlier)

    def reuse(self) -> float | None:
        """Return the objective of a finished run. Metrics of the user and figures that are missing are added first."""
        assert self.earlier is not None
        if self.is_first_process:
            restore_config(self.cfg, self.launch)
        compared = compare_with_current_data(self.earlier, self.cfg, self.folder.path)
        results, added = add_new_metrics(self.folder, self.earlier, self.cfg.metrics.extra)
        if added:
            self.display.note(f"added to metrics.json: {', '.join(added)}")
        drawn = self.folder.path.glob(f"{quality_of(results).key('accuracy')}_*.png")
        if self.is_first_process and len(list(drawn)) < 2:
            self.save_plots(results)  # the disk was full when the run ended
        state = "finished, but partial" if results["status"] == PARTIAL else "complete"
        hint = "" if compared else " (its data could not be compared with the current data)"
        self.display.note(f"this run is already {state}: {self.folder.path}{hint}")
        return objective(results, self.cfg.objective)

    def build(self) -> None:
        """Build the tasks, learner, strategy and loop, check that they fit together, and print the plan."""
        self.metrics = load_metrics(self.cfg.metrics.extra)
        self.sequence, self.learner, self.strategy = build(self.cfg)
        # these calls only check options before the training
        budget(self.cfg, 0, len(self.sequence))
        empty = empty_results(self.sequence, self.metrics)
        objective(empty, self.cfg.objective)
        direction = OmegaConf.select(self.launch.hydra, "hydra.sweeper.direction")
        check_direction(quality_of(empty), self.cfg.objective, direction)
        for name in self.cfg.logger:
            construct(self.cfg, f"logger.{name}", Callable)
        trainer = self._trainer(0, [])
        check_processes(trainer, self.sequence, self.cfg.trainer.get("strategy", "auto"))
        # examine the net before the loop attaches the strategy, which may add parameters or replace the net
        doubled = classifier_in_body(self.learner.net, self.sequence, self.cfg)
        parts = (self.cfg, self.launch.choices, self.sequence, self.learner)
        self.about = describe(*parts) | {"config_hash": self.folder.config_hash}
        if self.earlier is not None:
            check_same_data(fingerprint_in(self.earlier), self.sequence.fingerprint, self.folder.path)
        shown = plan(*parts)
        shared = shared_first_task_of(self.cfg, self.strategy, self.launch.sweep, self.sequence.fingerprint)
        names = LoopOptions.__dataclass_fields__.keys() - {"metrics"}
        options = LoopOptions(**{name: self.cfg[name] for name in names}, metrics=self.metrics)
        self.loop = TaskLoop(
            self.sequence, self.learner, self.strategy, self.folder, options, shared, self.display.warn
        )
        self.loop.monitor.translate = partial(translate, cfg=self.cfg, group="strategy")
        self.loop.outside = perf_counter() - self._began
        self.display.plan(shown)
        if doubled is not None:
            self.display.warn(doubled)
        if fewer := examples_left_out(trainer, self.sequence, self.strategy):
            self.display.note(
                f"the processes share each batch equally, and leave out up to {fewer} examples of a task in each epoch"
            )

    def resume(self) -> None:
        """Save the configuration, and resume from the newest checkpoint if there is one."""
        if self.is_first_process:
            save_config(self.cfg, self.launch)
        if self.earlier is not None:
            seconds = self.earlier["seconds"]
            self.loop.outside += seconds["total"] - total_seconds(seconds)
        self.loop.resume()
        if self.loop.next_task:
            self.display.note(f"resuming after task {self.loop.next_task}/{len(self.sequence)}")

    def train_tasks(self) -> None:
        """Train the remaining tasks in order, with the configured loggers."""
        if not self.loop.remaining:
            return
        with self.loop.logs.to(self._loggers()):
            for index in self.loop.remaining:
                self.train_task(index)
            self.loop.logs.final(self.loop.results())

    def train_task(self, index: int) -> None:
        """Train task ``index``, then save its checkpoint and the metrics so far."""
        trainer = self.loop.train_task(index, self._trainer)
        if trainer.is_global_zero:
            self.save(index)

    def save(self, index: int) -> None:
        """Write the checkpoint and the metrics after task ``index``, and print the accuracies."""
        self.loop.save(index)
        results = self.results(RUNNING)
        self.folder.write_metrics(results)
        row = results[quality_of(results).key("accuracy_matrix")][index]
        self.display.after_task(index, len(self.sequence), row, results["seconds"]["total"])

    def results(self, status: str) -> dict[str, Any]:
        """Return the contents of metrics.json."""
        return {"status": status, **self.about, **self.loop.results()}

    def finish(self) -> float | None:
        """Write the final metrics and plots, print the summary and return the objective; None if tasks remain."""
        if self.loop.tasks < len(self.sequence):
            self._print_status(f"{self.loop.tasks} of {len(self.sequence)} tasks")
            return None  # metrics.json contains the metrics so far
        results = self.results(PARTIAL if self.loop.partial else COMPLETE)
        value = objective(results, self.cfg.objective)
        if self.is_first_process:
            try:
                self.save_plots(results)
            finally:  # a failed plot must not lose the metrics
                self.folder.write_metrics(results)
            self.display.summary(results, self.metrics, self.folder.path)
            shown = "-" if value is None else f"{value:.4f}"
            if self.loop.partial:
                more = f" and {len(self.loop.partial) - 1} more" if len(self.loop.partial) > 1 else ""
                self.display.warn(
                    f"this run is partial, so reports exclude it from means: {self.loop.partial[0]}{more}"
                )
                shown = f"partial, {shown}"
            self._print_status(f"{shown}, {results['seconds']['total']:.1f} s")
        return value

    def save_plots(self, results: dict[str, Any]) -> None:
        """Draw the matrix R and its values over tasks."""
        # imported late, because importing matplotlib is slow
        from clbench.runs.plots import save_plots

        title = f"{self.launch.choices.strategy} on {self.cfg.data.name}, seed {self.cfg.seed}"
        quality = quality_of(results)
        data = evaluated_data(results)
        save_plots(read_matrix(results, quality), results["within_tasks"], title, self.folder.path, quality, data)

    def _trainer(self, index: int, callbacks: list[Callback]) -> Trainer:
        length = budget(self.cfg, index, len(self.sequence))
        return build_trainer(self.cfg, [*callbacks, ProgressBar(self.display.terminal)], length)

    def _loggers(self) -> list[Logger]:
        if not self.is_first_process:
            return []
        about = flat(self.cfg, self.launch.choices, self.about) | {"config_hash": self.folder.config_hash}
        report = self.display.note if self.launch.sweep is None else print_once
        shared = self.launch.sweep or self.folder.path
        context = LoggerContext(self.folder.path, shared, self.loop.next_task, about, report)
        return [build_logger(self.cfg, str(name), context) for name in self.cfg.logger]

    def _print_status(self, result: str) -> None:
        if self.launch.sweep is not None:
            print_status(self.launch.sweep, self.folder.path, result)


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """Set the number of torch threads, and restore it on exit; None changes nothing."""
    if number is None:
        yield
        return
    previous = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
