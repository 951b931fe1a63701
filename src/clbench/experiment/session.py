"""Exclusive ownership of a run folder: opening, locking, status lines, failure report, saved configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from traceback import format_exception
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clbench.config.hashing import config_hash, decisive, differing, leaves
from clbench.config.messages import user_message
from clbench.errors import OtherRun
from clbench.experiment.build import shared_first_task_key
from clbench.experiment.launch import Launch
from clbench.runs import sweep_log
from clbench.runs.config_file import configuration, read_config, write_config
from clbench.runs.folder import FAILED, RunFolder, atomically
from clbench.strategies import Strategy
from clbench.training.shared_first_task import SharedFirstTask

SAID = 4  # differences from another run, in a message


def open_run_folder(cfg: DictConfig, choices: Mapping[str, Any], path: Path) -> RunFolder:
    """Return the folder at ``path`` for the run that ``cfg`` and ``choices`` describe.

    Raises:
        OtherRun: The folder holds the results of another configuration. The error names the first differences.
    """
    try:
        return RunFolder(path, config_hash(cfg, choices), cfg.checkpoints)
    except OtherRun as error:
        there = configuration(read_config(path))
        pairs = differing(*(dict(leaves(decisive(each))) for each in (there, cfg)))
        said = [
            f"{key}={pairs[key][0]} there, {pairs[key][1]} here" for key in sorted(pairs, key=lambda k: k.count("."))
        ]
        raise OtherRun(f"{error}; {'; '.join(said[:SAID])}") from None


@contextmanager
def exclusive_run(folder: RunFolder, sweep: Path | None) -> Iterator[None]:
    """Lock the run's folder for this process. If the run fails, write the reason to the folder until the run is started again.

    Args:
        folder: The run's folder.
        sweep: The folder of the run's sweep, None for a single run.

    Raises:
        ConfigError: Another process holds the lock.
    """
    with folder.held():
        reason = folder.path / FAILED
        reason.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            said = user_message(error) or repr(error)
            reason.write_text(f"{said}\n\n{''.join(format_exception(error))}", encoding="utf-8")
            if sweep is not None:
                print_status(sweep, folder.path, f"failed: {said}")
            raise


def shared_first_task_of(cfg: DictConfig, strategy: Strategy, sweep: Path | None) -> SharedFirstTask | None:
    """Return the first task that the run shares with other runs of its ``sweep``, None if it shares nothing."""
    key = None if sweep is None else shared_first_task_key(cfg, strategy)
    return None if key is None or sweep is None else SharedFirstTask(sweep / "shared_first_tasks", key)


def print_status(sweep: Path, folder: Path, said: str) -> None:
    """Print one line about a run of a sweep that has ended."""
    print(sweep_log.end(sweep, folder.name, said), file=sys.stderr, flush=True)


def save_config(cfg: DictConfig, launch: Launch) -> None:
    """Write ``.hydra/`` as Hydra does, but only now that the folder is known to belong to this run."""
    folder = launch.folder / ".hydra"
    folder.mkdir(exist_ok=True)
    contents = {"config": cfg, "hydra": launch.hydra, "overrides": launch.hydra.hydra.overrides.task}
    for name, content in contents.items():
        atomically(folder / f"{name}.yaml", partial(Path.write_text, data=OmegaConf.to_yaml(content), encoding="utf-8"))
    write_config(launch.folder, cfg, launch.choices, launch.hydra.hydra.overrides.task)
