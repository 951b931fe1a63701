"""What stands between a person and a run: errors in one line, and no messages that say nothing to the user."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clbench.config.arguments import SAID_AS
from clbench.config.declarations import declarations, files, of_a_run
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

EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "optuna": "optuna"}
"""Plugins of Hydra, and which extra of ours brings each."""


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
        if argument.startswith("--") and name in _options():
            raise ConfigError(f"{argument}: options are written without dashes: {name}={value or '...'}")


def stopped() -> str:
    """What Ctrl-C leaves of a run, and how to go on; a sweep says so itself."""
    hydra = HydraConfig.instance().cfg
    if hydra is None:
        return "stopped"
    folder = Path(hydra.hydra.runtime.output_dir)
    if not list(folder.glob("checkpoints/*.ckpt")):
        return "stopped; nothing was finished yet"
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"stopped; the same command with output_dir={here} goes on after what is finished"


def user_message(error: BaseException) -> str | None:
    """One line for an error that the user can mend, None for a bug of ours."""
    if isinstance(error, ConfigError | Unstable):
        return str(error)
    cause = error.__cause__
    if isinstance(cause, ConfigError | Unstable):  # raised inside hydra.utils.instantiate
        return str(cause)
    text = str(error)
    if (match := re.search(r"Could not find 'hydra/(launcher|sweeper)/(\w+)'", text)) and match.group(2) in EXTRAS:
        kind, name = match.groups()
        return f'the {kind} {name} is a package of its own: pip install "clbench[{EXTRAS[name]}]"'
    if match := re.search(r"Could not find '(\w+)/(\S+)'", text):
        group, choice = match.groups()
        if f"{group}={choice}" in RENAMED:
            return f"{group}={choice} is now {RENAMED[f'{group}={choice}']}"
        there = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"{group}={choice} does not exist: use one of {', '.join(there)}" + _near(choice, there)
    if match := re.search(r"Could not override '(\S+?)'", text):
        name = match.group(1)
        if (new := renamed(name)) is not None:
            return f"{name} is now {new}: write {new}=..."
        if name in SAID_AS:
            return f"there is no option {name}: write {SAID_AS[name]}=..."
        more = f"; +{name}=... adds a new key" if "." in name else ""
        there = _keys_of(name.partition(".")[0]) if "." in name else _options()
        return f"there is no option {name}: --help lists what there is{more}" + _near(name, there)
    if match := re.search(r"Ambiguous value for argument '(\S+)=(\S+)'", text):
        key, values = match.groups()
        return f"{key}={values} has several values: add -m to run each of them, or write {key}=[{values}] for a list"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} is no option=value: write lam=10, and -m lam=1,10 for several values, without spaces"
        )
    if isinstance(error, OmegaConfBaseException | ConfigCompositionException):
        return " ".join((text or repr(cause)).split())
    if type(error) is HydraException:  # interval(1, 10) in a grid, say
        return " ".join(text.split())
    if match := re.search(r"Error locating target '(\S+)'", text):
        *_, why = str(cause or "it cannot be found").splitlines()
        return f"_target_={match.group(1)} cannot be imported. {why}"
    if isinstance(cause, ImportError | AttributeError):
        return " ".join(text.split())
    return None


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


def _near(name: str, there: list[str]) -> str:
    """Return a question if one of the names there is close to ``name``."""
    close = get_close_matches(name.lower(), there, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _options() -> list[str]:
    """Keys of the top level."""
    return [key for key in of_a_run() if key != "hydra"]


def _keys_of(group: str) -> list[str]:
    """Keys that some yaml of a group declares."""
    return sorted({key for file in files(group) for key in declarations(file) if key.startswith(f"{group}.")})


def silence_lightning() -> None:
    """Silence what Lightning says about itself on every fit."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", module="torch.utils._pytree")
