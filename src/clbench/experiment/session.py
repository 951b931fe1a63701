"""What is a run's own: its folder, which no other run and no other process has meanwhile, and what it says and leaves there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from traceback import format_exception

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clbench.config.hashing import config_hash, decisive, differing, leaves
from clbench.config.messages import user_message
from clbench.errors import OtherRun
from clbench.experiment.build import shared_first_task_key
from clbench.runs import sweep_log
from clbench.runs.config_file import configuration, read_config, write_config
from clbench.runs.folder import FAILED, RunFolder, atomically
from clbench.strategies import Strategy
from clbench.training.shared_first_task import SharedFirstTask

SAID = 4  # differences from another run, in a message


def open_run_folder(cfg: DictConfig) -> RunFolder:
    """Where the run lies; what differs is said if it is another's."""
    path = Path(HydraConfig.get().runtime.output_dir)
    try:
        return RunFolder(path, config_hash(cfg, HydraConfig.get().runtime.choices), cfg.checkpoints)
    except OtherRun as error:
        there = configuration(read_config(path))
        pairs = differing(*(dict(leaves(decisive(each))) for each in (there, cfg)))
        said = [
            f"{key}={pairs[key][0]} there, {pairs[key][1]} here" for key in sorted(pairs, key=lambda k: k.count("."))
        ]
        raise OtherRun(f"{error}; {'; '.join(said[:SAID])}") from None


@contextmanager
def exclusive_run(folder: RunFolder, sweeping: bool) -> Iterator[None]:
    """The run is this process's alone; why it fails, if it does, lies in its folder until it is started again."""
    with folder.held():
        reason = folder.path / FAILED
        reason.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            said = user_message(error) or repr(error)
            reason.write_text(f"{said}\n\n{''.join(format_exception(error))}")
            if sweeping:
                print_status(folder.path, f"failed: {said}")
            raise


def shared_first_task_of(cfg: DictConfig, strategy: Strategy) -> SharedFirstTask | None:
    """What the run has in common with others of its sweep; None if it shares nothing."""
    key = shared_first_task_key(cfg, strategy)
    return (
        None
        if key is None
        else SharedFirstTask(Path(HydraConfig.get().sweep.dir).absolute() / "shared_first_tasks", key)
    )


def print_status(folder: Path, said: str) -> None:
    """A line for a run of a sweep that has ended."""
    print(sweep_log.end(folder.parent, folder.name, said), file=sys.stderr, flush=True)


def save_config(cfg: DictConfig, path: Path) -> None:
    """``.hydra/`` as Hydra writes it, but only now that the folder is known to be this run's."""
    (path / ".hydra").mkdir(exist_ok=True)
    hydra_cfg = HydraConfig.instance().cfg
    assert hydra_cfg is not None
    contents = {"config": cfg, "hydra": hydra_cfg, "overrides": hydra_cfg.hydra.overrides.task}
    for name, content in contents.items():
        text = OmegaConf.to_yaml(content)
        atomically(path / ".hydra" / f"{name}.yaml", partial(Path.write_text, data=text))
    write_config(path, cfg, hydra_cfg.hydra.runtime.choices, hydra_cfg.hydra.overrides.task)
