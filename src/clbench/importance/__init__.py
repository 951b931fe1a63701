"""Importance of each parameter for what a module does on some data: exact, fast, without side effects."""

from clbench.importance.batching import draw
from clbench.importance.fisher import fisher, fisher_and_error
from clbench.importance.labels import check_options
from clbench.importance.local import mas_local
from clbench.importance.mas import mas, mas_and_error
from clbench.importance.outputs import default_outputs
from clbench.importance.preserve_state import undisturbed

__all__ = [
    "check_options",
    "default_outputs",
    "draw",
    "fisher",
    "fisher_and_error",
    "mas",
    "mas_and_error",
    "mas_local",
    "undisturbed",
]
