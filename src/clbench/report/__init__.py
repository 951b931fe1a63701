"""Reports of run folders: tables, figures and an HTML page. ``python -m clbench.report FOLDER...``."""
