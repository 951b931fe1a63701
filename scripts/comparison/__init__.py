"""Parts of ``compare_fisher.py``: the formulas, Avalanche itself, a task and its training, side effects, the report."""
