"""Reports: read folders of runs into a data frame, tables, figures and a page. ``python -m clbench.report FOLDER...``."""

from clbench.report.read import read

__all__ = ["read"]
