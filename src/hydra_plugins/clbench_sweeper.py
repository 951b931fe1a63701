"""Hydra takes sweepers from ``hydra_plugins`` only; see ``clbench.sweep.sweeper``."""

from clbench.sweep.sweeper import GridSweeper


class UniqueSweeper(GridSweeper):
    """The sweeper of clbench, under a name that Hydra finds."""
