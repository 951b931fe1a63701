"""What stands between a person and a run: errors in one line, and no messages that say nothing to the user."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from clbench.config.options import conf_dir
from clbench.errors import ConfigError, Unstable

WITH_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""As the process was started: ``errors_in_one_line`` sets the variable."""

RENAMED = {
    "data.cut": "data.split",
    "choose_lam_on": "select_lam_on_first_tasks",
    "first_tasks": "stop_after_task",
    "share": "share_first_task",
    "net.without": "net.drop_layer",
    "strategy.draws": "strategy.label_samples",
    "optimizer.lr": "lr",
    "net=own": "net=custom",
    "net=any": "net=module",
    "strategy=joint_scratch": "strategy=joint_from_scratch",
}
"""Names of an earlier version -> their names now; used for error texts only."""


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """An error of the user's making ends the process with one line on stderr and exit code 1.

    Without a traceback, unless ``HYDRA_FULL_ERROR=1`` asks for it, as it does in every program with Hydra.
    """
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing its own three lines
    try:
        yield
    except BrokenPipeError:  # ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(stopped())
    except Exception as error:
        said = user_message(error)
        if WITH_TRACEBACK or not said:
            raise
        sys.exit(f"error: {said}")
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def reject_dashes(arguments: Sequence[str]) -> None:
    """Say how an option is written to who typed it as most programs have it.

    Raises:
        ConfigError: an argument is ``--lam`` or ``--lam=10``.
    """
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in option_names():
            raise ConfigError(f"{argument}: options are written without dashes: {name}={value or '...'}")


def stopped() -> str:
    """What Ctrl-C leaves of a run, and how to go on; a sweep says so itself."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.instance().cfg
    if hydra is None:
        return "stopped"
    folder = Path(hydra.hydra.runtime.output_dir)
    if not list(folder.glob("checkpoints/*.ckpt")):
        return "stopped; nothing was finished yet"
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"stopped; the same command with output_dir={here} goes on after what is finished"


def user_message(error: BaseException) -> str | None:
    """Return one line for an error that the user can correct, None for a bug of ours."""
    if isinstance(error, ConfigError | Unstable):
        return str(error)
    if isinstance(error.__cause__, ConfigError | Unstable):  # raised inside hydra.utils.instantiate
        return str(error.__cause__)
    if "hydra" not in sys.modules:  # a report loads no Hydra
        return None
    from clbench.config.hydra_messages import hydra_message

    return hydra_message(error)


def renamed(key: str) -> str | None:
    """Return the present name of a dotted configuration ``key`` of an earlier version, None if it has always had its name."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def refuse_renamed(cfg: DictConfig) -> None:
    """Raise ConfigError if a yaml of the user's has a key of an earlier version."""
    for old, new in RENAMED.items():
        if "=" not in old and OmegaConf.select(cfg, old, default=None) is not None:
            raise ConfigError(f"{old} is now {new}: rename it in your yaml")


def near_name(name: str, there: list[str]) -> str:
    """A question, if one of those there are nearly has that name."""
    close = get_close_matches(name.lower(), there, 1)
    return f"; did you mean {close[0]}?" if close else ""


def option_names() -> list[str]:
    """Keys of the top level."""
    return [str(key) for key in OmegaConf.load(conf_dir() / "train.yaml")]


def silence_lightning() -> None:
    """Silence what Lightning says about itself on every fit."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", module="torch.utils._pytree")
