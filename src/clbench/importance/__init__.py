"""Importance of each parameter for the outputs of a module on some data: exact, fast and without side effects."""

from clbench.importance.batching import subsample
from clbench.importance.fisher import fisher, fisher_and_error
from clbench.importance.kronecker import kronecker_fisher
from clbench.importance.label_options import check_options
from clbench.importance.local import mas_local
from clbench.importance.mas import mas, mas_and_error
from clbench.importance.outputs import default_outputs
from clbench.importance.preserve_state import preserve_state

__all__ = [
    "check_options",
    "default_outputs",
    "fisher",
    "fisher_and_error",
    "kronecker_fisher",
    "mas",
    "mas_and_error",
    "mas_local",
    "preserve_state",
    "subsample",
]
