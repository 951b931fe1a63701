"""Exclusive ownership of a run folder: opening, locking, status lines, failure report, saved configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from traceback import format_exception
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clbench.config.hashing import config_hash, decisive, derived_keys, differing, leaves
from clbench.config.messages import user_message
from clbench.errors import ConfigError, OtherRun
from clbench.experiment.build import shared_first_task_key
from clbench.experiment.launch import Launch
from clbench.runs import sweep_log
from clbench.runs.config_file import configuration, read_config, write_config
from clbench.runs.folder import FAILED, RunFolder, atomically
from clbench.strategies import Strategy
from clbench.training.shared_first_task import SharedFirstTask

DIFFERENCES_SHOWN = 4  # in the error of a folder that belongs to another run


def open_run_folder(cfg: DictConfig, choices: Mapping[str, Any], path: Path) -> RunFolder:
    """Return the folder at ``path`` for the run that ``cfg`` and ``choices`` describe.

    Raises:
        OtherRun: The folder contains results of another configuration. The message lists the first differences.
    """
    try:
        return RunFolder(path, config_hash(cfg, choices), cfg.checkpoints)
    except OtherRun as error:
        try:
            content = read_config(path)
        except ConfigError:  # without config.json the differences are unknown
            raise error from None
        pairs = differing(*(dict(leaves(decisive(each))) for each in (configuration(content), cfg)))
        derived = content["derived"].keys() | derived_keys(cfg).keys()
        keys = sorted((key for key in pairs if key not in derived), key=lambda key: key.count("."))
        texts = [f"{key} {' and '.join(map(_as_yaml, pairs[key]))}" for key in keys]
        raise OtherRun(f"{error} Differences (stored and new): {', '.join(texts[:DIFFERENCES_SHOWN])}.") from None


def _as_yaml(value: Any) -> str:
    return "null" if value is None else str(value)


@contextmanager
def exclusive_run(folder: RunFolder, sweep: Path | None) -> Iterator[None]:
    """Lock the run folder for this process. If the run fails, keep the reason in failed.txt until it is started again.

    Args:
        folder: The run's folder.
        sweep: The folder of the run's sweep, None for a single run.

    Raises:
        ConfigError: Another process has locked the folder.
    """
    with folder.lock():
        reason = folder.path / FAILED
        reason.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            if sweep is None and user_message(error) is not None:
                discard_unused_folder(folder.path)  # a sweep keeps it, because its report lists failed runs
            if not folder.path.is_dir():
                raise
            message = user_message(error) or repr(error)
            text = f"{message}\n\n{''.join(format_exception(error))}"
            with suppress(OSError):  # a full disk must not replace the reason of the failure
                atomically(reason, partial(Path.write_text, data=text, encoding="utf-8"))
                if sweep is not None:
                    print_status(sweep, folder.path, f"failed: {message}")
            raise


def discard_unused_folder(path: Path) -> None:
    """Remove the folder of a run if it contains nothing except for the lock and the log."""
    with suppress(OSError):  # there is no such folder, or it may not be changed; Windows does not remove open files
        if {file.name for file in path.iterdir()} <= {".lock", "train.log"}:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def shared_first_task_of(
    cfg: DictConfig, strategy: Strategy, sweep: Path | None, fingerprint: Mapping[str, str]
) -> SharedFirstTask | None:
    """Return the first task that the run shares with other runs of its ``sweep``, None without sharing."""
    key = None if sweep is None else shared_first_task_key(cfg, strategy, fingerprint)
    return None if key is None or sweep is None else SharedFirstTask(sweep / "shared_first_tasks", key)


def print_status(sweep: Path, folder: Path, result: str) -> None:
    """Print the status line of a run of a sweep that has ended."""
    print(sweep_log.end(sweep, folder.name, result), file=sys.stderr, flush=True)


def restore_config(cfg: DictConfig, launch: Launch) -> None:
    """Write config.json of a finished run again if it is missing or damaged. All its values follow from the command."""
    try:
        read_config(launch.folder)
    except ConfigError:
        save_config(cfg, launch)


def save_config(cfg: DictConfig, launch: Launch) -> None:
    """Write config.json and ``.hydra/``. Hydra would write ``.hydra/`` before the folder is locked."""
    folder = launch.folder / ".hydra"
    folder.mkdir(exist_ok=True)
    contents = {"config": cfg, "hydra": launch.hydra, "overrides": launch.hydra.hydra.overrides.task}
    for name, content in contents.items():
        atomically(folder / f"{name}.yaml", partial(Path.write_text, data=OmegaConf.to_yaml(content), encoding="utf-8"))
    write_config(launch.folder, cfg, launch.choices, launch.hydra.hydra.overrides.task)
