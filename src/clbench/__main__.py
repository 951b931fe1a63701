"""The command ``clbench``: its parts are modules, and ``clbench train ...`` is ``python -m clbench.train ...``.

Nothing is imported before the part is known.
"""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "train": ("clbench.train", "train a run, or with -m a sweep of runs"),
    "report": ("clbench.report", "tables, figures and a page of all runs in folders"),
    "diff": ("clbench.runs.diff", "what differs between two runs"),
    "new": ("clbench.experiment.new", "write the skeleton of a strategy, net, data set or metric of your own"),
}
"""Name of a part -> its module, and what it does."""


def usage() -> str:
    """Return the text of ``clbench --help``."""
    parts = "\n".join(f"  clbench {name:8}{what}" for name, (_, what) in COMMANDS.items())
    return f"""clbench: train a network on a sequence of tasks and measure how much it forgets

{parts}

  clbench COMMAND --help   the options of a command
  clbench --version        the version of clbench

The first run needs no download: clbench train strategy=ewc lam=1e5"""


def refusal(name: str) -> str:
    """Return the error for a part that does not exist, with the most likely remedy."""
    from difflib import get_close_matches

    known = f"clbench {name}: expected one of {', '.join(COMMANDS)}"
    if "=" in name or name == "-m":
        return f"{known}. Try clbench train {name} ..."
    close = get_close_matches(name, COMMANDS, 1)
    return known + (f". Did you mean clbench {close[0]}?" if close else ". clbench --help explains them.")


def show_version() -> None:
    """Print the version of clbench."""
    from importlib.metadata import version

    print(f"clbench {version('clbench')}")


def cli() -> None:
    """The command ``clbench``."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        show_version()
    elif name not in COMMANDS:
        sys.exit(f"error: {refusal(name)}")
    else:
        del sys.argv[1]
        # as __main__, from which Lightning and Hydra's launchers know how to start further processes
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    cli()
