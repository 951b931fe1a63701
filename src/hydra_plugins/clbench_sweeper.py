"""Register the sweeper of clbench with Hydra, which only loads plugins from ``hydra_plugins``."""

from clbench.sweep.sweeper import GridSweeper


class UniqueSweeper(GridSweeper):
    """The sweeper of clbench, see ``clbench.sweep.sweeper``."""
