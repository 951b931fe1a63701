"""Turn exceptions into one-line messages and silence Lightning's notices."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clbench.config.known_names import option_names, refuse_renamed_key, refuse_unnamed_choice
from clbench.config.os_errors import os_message
from clbench.errors import ConfigError, Unstable

WITH_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user asked for tracebacks. Read once, because ``errors_in_one_line`` sets the variable."""


@contextmanager
def errors_in_one_line(interrupted: Callable[[], str] = lambda: "Interrupted.") -> Iterator[None]:
    """End the process with one line on stderr and exit code 1 if the user caused an error.

    The traceback is shown only with ``HYDRA_FULL_ERROR=1``, as in every program that uses Hydra.

    Args:
        interrupted: Function that returns the line to print after Ctrl-C.
    """
    previous = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them
    try:
        yield
    except BrokenPipeError:  # the output is piped to a program that ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(interrupted())
    except Exception as error:
        message = user_message(error)
        if WITH_TRACEBACK or not message:
            raise
        sys.exit(f"error: {message}")
    finally:
        os.environ["HYDRA_FULL_ERROR"] = previous


def check_arguments(arguments: Sequence[str]) -> None:
    """Check the syntax and the names of overrides before the configuration is composed.

    Raises:
        ConfigError: An argument is ``--lam`` or ``--lam=10``, a group without the name of a choice, or an option that was
            renamed, with or without ``+`` or ``~``.
    """
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in option_names():
            raise ConfigError(f"{argument}: expected option=value without dashes. Try {name}={value or '...'}")
        refuse_renamed_key(name.lstrip("+~"), value)
        if "=" in argument:
            refuse_unnamed_choice(name, value)


def interruption_message(folder: Path) -> str:
    """Return the line to print after Ctrl-C in the single run in ``folder``, with the way to resume it."""
    if not list(folder.glob("checkpoints/*.ckpt")):
        return "Interrupted before the first checkpoint was written."
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"Interrupted. Rerun the same command with output_dir={shown} to resume."


@contextmanager
def config_errors() -> Iterator[None]:
    """Convert errors that the user can correct to ConfigError, with the message that the command would print."""
    try:
        yield
    except (ConfigError, Unstable):
        raise
    except Exception as error:
        if isinstance(error.__cause__, ConfigError | Unstable):  # hydra.utils.instantiate wraps the original error
            raise error.__cause__ from error
        if (message := user_message(error)) is None:
            raise
        raise ConfigError(message) from error


def user_message(error: BaseException) -> str | None:
    """Return a one-line message for an error that the user can correct, None for a bug in clbench."""
    for each in (error, error.__cause__):  # hydra.utils.instantiate wraps the original error
        if isinstance(each, ConfigError | Unstable):
            return str(each)
        if isinstance(each, OSError) and (message := os_message(each)) is not None:
            return message
    if is_out_of_memory(error):
        text = " ".join(str(error).split())
        return f"out of memory: {text}. Try a smaller net, batch_size, chunk or data set."
    if "hydra" not in sys.modules:  # reports do not import Hydra, so this is not its error
        return None
    from clbench.config.hydra_messages import hydra_message

    return hydra_message(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation of Python, NumPy or torch failed, on the CPU or on a GPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool({"MemoryError", "OutOfMemoryError"} & names) or "can't allocate memory" in str(error)


def silence_lightning() -> None:
    """Silence the notices that Lightning prints on every fit."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", module="torch.utils._pytree")
