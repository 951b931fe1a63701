"""Modules of ``reproduce.py``: runs of a study (plan, execute, store), their results (collect, verdict), files (page, write)."""
