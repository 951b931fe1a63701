"""Turn exceptions into one-line messages and silence Lightning's notices."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clbench.config.known_names import option_names, refuse_renamed_key
from clbench.errors import ConfigError, Unstable

WITH_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""As the process was started: ``errors_in_one_line`` sets the variable."""


@contextmanager
def errors_in_one_line(interrupted: Callable[[], str] = lambda: "stopped") -> Iterator[None]:
    """An error of the user's making ends the process with one line on stderr and exit code 1.

    Without a traceback, unless ``HYDRA_FULL_ERROR=1`` asks for it, as it does in every program with Hydra.

    Args:
        interrupted: Returns the line after Ctrl-C.
    """
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing its own three lines
    try:
        yield
    except BrokenPipeError:  # ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(interrupted())
    except Exception as error:
        said = user_message(error)
        if WITH_TRACEBACK or not said:
            raise
        sys.exit(f"error: {said}")
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def check_arguments(arguments: Sequence[str]) -> None:
    """Check how options are written, before anything is composed; of a sweep too.

    Raises:
        ConfigError: an argument is ``--lam`` or ``--lam=10``, or an option of an earlier version, also after ``+`` and ``~``.
    """
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in option_names():
            raise ConfigError(f"{argument}: options are written without dashes: {name}={value or '...'}")
        refuse_renamed_key(name.lstrip("+~"))


def stopped(folder: Path) -> str:
    """What Ctrl-C leaves of the run in ``folder``, and how to go on; a sweep says so itself."""
    if not list(folder.glob("checkpoints/*.ckpt")):
        return "Interrupted. Nothing was finished yet."
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"Interrupted. Rerun the same command with output_dir={here} to resume."


@contextmanager
def config_errors() -> Iterator[None]:
    """Raise what the user can mend as ConfigError, or as Unstable, with the line that the command would print."""
    try:
        yield
    except (ConfigError, Unstable):
        raise
    except Exception as error:
        if isinstance(error.__cause__, ConfigError | Unstable):  # raised inside hydra.utils.instantiate
            raise error.__cause__ from error
        if (said := user_message(error)) is None:
            raise
        raise ConfigError(said) from error


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


def silence_lightning() -> None:
    """Silence what Lightning says about itself on every fit."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", module="torch.utils._pytree")
