"""Report: folders of runs -> a data frame, tables, figures and one page. ``python -m clbench.report FOLDER...``."""

from clbench.report.read import read

__all__ = ["read"]
