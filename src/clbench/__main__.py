"""Run the command ``clbench``. Each subcommand is a module: ``clbench train ...`` runs ``python -m clbench.train ...``.

Nothing is imported before the subcommand is known, so that ``clbench --help`` responds quickly.
"""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "train": ("clbench.train", "train a run, or with -m a sweep of runs"),
    "study": ("clbench.study", "run the rows of a paper's table, declared in one file"),
    "report": ("clbench.report", "write tables, figures and a page of all runs in folders"),
    "diff": ("clbench.runs.diff", "compare the options and results of two runs"),
    "new": ("clbench.experiment.new", "write the skeleton of a new strategy, net, data set or metric"),
}
"""Subcommand -> its module and its description."""


def usage() -> str:
    """Return the text of ``clbench --help``."""
    commands = "\n".join(f"  clbench {name:8}{description}" for name, (_, description) in COMMANDS.items())
    return f"""clbench: train a network on a sequence of tasks and measure how much it forgets

{commands}

  clbench COMMAND --help   the options of a command
  clbench --version        the version of clbench

The first run needs no download: clbench train strategy=ewc lam=1e5"""


def unknown_command(name: str) -> str:
    """Return the error for an unknown subcommand, with the most likely remedy."""
    from difflib import get_close_matches

    known = f"clbench {name}: expected one of {', '.join(COMMANDS)}"
    if "=" in name or name == "-m":
        return f"{known}. Try clbench train {name} ..."
    close = get_close_matches(name, COMMANDS, 1)
    return known + (f". Did you mean clbench {close[0]}?" if close else ". Try clbench --help.")


def show_version() -> None:
    """Print the version of clbench."""
    from importlib.metadata import version

    print(f"clbench {version('clbench')}")


def cli() -> None:
    """Run the command ``clbench``."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        show_version()
    elif name not in COMMANDS:
        sys.exit(f"error: {unknown_command(name)}")
    else:
        del sys.argv[1]
        # run as __main__, because Lightning and Hydra's launchers start further processes from it
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    cli()
