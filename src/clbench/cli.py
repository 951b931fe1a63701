"""What stands between a person and a run: errors in one line, and no messages that say nothing to the user."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf.errors import OmegaConfBaseException

from clbench.errors import ConfigError, Unstable

EXTRAS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "optuna": "optuna"}
"""Plugins of Hydra, and which extra of ours brings each."""


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """An error of the user's making ends the process with one line on stderr and exit code 1, without a traceback."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing its own three lines
    try:
        yield
    except BrokenPipeError:  # ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command with the same output_dir goes on after the last finished task")
    except Exception as error:
        said = cause_of(error)
        if not said:
            raise
        sys.exit(f"error: {said}")


def cause_of(error: BaseException) -> str | None:
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
        there = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"{group}={choice} does not exist: use one of {', '.join(there)}"
    if match := re.search(r"Could not override '(\S+?)'", text):
        return f"there is no option {match.group(1)}: --help lists what there is; +{match.group(1)}=... adds a new key"
    if isinstance(error, OmegaConfBaseException) or type(error).__name__ in (
        "OverrideParseException",
        "ConfigCompositionException",
    ):
        return " ".join((text or repr(cause)).split())
    if isinstance(cause, ImportError | AttributeError) or "Error locating target" in text:
        return " ".join(text.split())
    return None


def quiet_lightning() -> None:
    """Silence what Lightning says about itself on every fit."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", module="torch.utils._pytree")
