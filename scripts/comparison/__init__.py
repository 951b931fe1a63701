"""Modules of ``compare_fisher.py``: formulas, calls of Avalanche, training on one task, side effects, report."""
