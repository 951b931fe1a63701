"""Train runs and sweeps: the command ``clbench train strategy=ewc lam=1e5`` and the function ``clbench.run``.

Only Hydra is imported before the configuration is composed, so that ``--help`` and wrong options respond quickly.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from clbench.config.help import HELP_FLAGS, print_help
from clbench.config.messages import check_arguments, config_errors, errors_in_one_line, interruption_message
from clbench.config.options import conf_dir
from clbench.errors import ConfigError

if TYPE_CHECKING:
    from clbench.experiment.launch import Launch


@hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """Train one run of the command or of a sweep; return the objective, which a Hydra sweeper can optimise."""
    return start(cfg)


def start(cfg: DictConfig) -> float | None:
    """Train the run that Hydra started; return its objective."""
    from clbench.experiment.orphan import exit_with_parent

    exit_with_parent()
    launch = launched_by_hydra()
    if launch.sweep is not None:
        return train_and_free(cfg, launch)  # the sweeper reports errors
    with errors_in_one_line(partial(interruption_message, launch.folder)):
        return train_and_free(cfg, launch)


def train(cfg: DictConfig, launch: Launch) -> float | None:
    """Train the run that ``cfg`` describes and write its folder; return the objective, None if there is none yet."""
    from clbench.experiment.experiment import Experiment

    experiment = Experiment(cfg, launch)
    with experiment.opened():
        if experiment.is_finished:
            return experiment.reuse()
        experiment.build()
        if cfg.dry_run:
            return None
        experiment.resume()
        experiment.train_tasks()
        return experiment.finish()


def run(
    overrides: Sequence[str] = (),
    folder: str | os.PathLike[str] | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    *,
    quiet: bool = False,
    sweep: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Train one run in this process, like the command ``clbench train OVERRIDES``, and return its metrics.

    If ``folder`` already contains this run, the run is resumed, or returned immediately if it is complete.

    Args:
        overrides: The overrides of the command, such as ``["strategy=ewc", "lam=1e5"]``.
        folder: The run's folder, None for ``output_dir`` of the configuration.
        config_dir: A folder with additional configuration groups, like ``--config-dir`` of the command.
        quiet: Whether to print nothing to the terminal. ``train.log`` in the run folder contains the same text.
        sweep: A folder in which several runs share their first tasks, None for a single run.

    Returns:
        The contents of metrics.json; empty after ``dry_run=true``.

    Raises:
        ConfigError: The configuration cannot be composed or trained.
        Unstable: The weights became non-finite.

    Example:
        >>> metrics = clbench.run(["strategy=ewc", "lam=1e5"], folder="runs/a")  # doctest: +SKIP
        >>> metrics["average_accuracy"]  # doctest: +SKIP
    """
    from clbench.config.compose import compose, hydra_state, without_hydra
    from clbench.experiment.launch import Launch

    with hydra_state(), config_errors():
        whole = compose(overrides, config_dir)
        with open_dict(whole):
            if folder is not None:
                whole.output_dir = str(folder)
            path = Path(whole.output_dir).expanduser().absolute()
            whole.hydra.runtime.output_dir = str(path)
        HydraConfig.instance().set_config(whole)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"folder={path}: expected a folder, but it is a file. Try another path.")
        path.mkdir(parents=True, exist_ok=True)
        shared = None if sweep is None else Path(sweep).expanduser().absolute()
        train_and_free(without_hydra(whole), Launch(path, hydra_settings(), shared, quiet))
    file = path / "metrics.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def launched_by_hydra() -> Launch:
    """Return how the command, or Hydra's launcher of a sweep, started this run."""
    from clbench.experiment.launch import Launch

    config = HydraConfig.get()
    sweeping = config.mode == RunMode.MULTIRUN
    sweep = Path(config.runtime.cwd, config.sweep.dir) if sweeping else None
    return Launch(Path(config.runtime.output_dir), hydra_settings(), sweep, quiet=sweeping)


def hydra_settings() -> DictConfig:
    """Return Hydra's settings of the current configuration."""
    settings: Any = HydraConfig.instance().cfg
    assert isinstance(settings, DictConfig)
    return settings


def train_and_free(cfg: DictConfig, launch: Launch) -> float | None:
    """Train one of possibly many runs of this process, then free its memory."""
    with free_run_memory():  # as a decorator it could not be pickled for the workers of a sweep
        return train(cfg, launch)


@contextmanager
def free_run_memory() -> Iterator[None]:
    """Collect the reference cycles of a run on exit. Older objects are frozen, so that the collector does not scan them."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def check_flags(arguments: Sequence[str]) -> None:
    """Exit with a usage line of ``clbench train`` if Hydra would reject a flag. Hydra's own line names ``train.py``."""
    parser = get_args_parser()
    parser.prog = "clbench train"
    parser.parse_args(arguments)


def cli() -> None:
    """Run the command ``clbench train``.

    ``--dry-run`` is replaced by ``dry_run=true``, because Hydra rejects unknown flags. ``-m`` is moved to the front, because
    Hydra rejects overrides on both sides of it.
    """
    if "--version" in sys.argv[1:]:  # Hydra would print its own version
        from clbench.__main__ import show_version

        return show_version()
    program, *typed = ("dry_run=true" if argument == "--dry-run" else argument for argument in sys.argv)
    sys.argv = [program, *sorted(typed, key=lambda argument: argument not in ("-m", "--multirun"))]
    with errors_in_one_line():
        if set(HELP_FLAGS) & set(sys.argv):
            return print_help(sys.argv[1:])
        check_arguments(sys.argv[1:])
        check_flags(sys.argv[1:])
        main()


if __name__ == "__main__":
    cli()
