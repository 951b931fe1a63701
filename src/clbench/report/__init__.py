"""Report: folders of runs -> tables, figures and one page. ``python -m clbench.report FOLDER...``."""
