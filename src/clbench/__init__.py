"""clbench: continual learning by regularisation, with importances that are verified."""

from clbench.importance import fisher, mas
from clbench.metrics import AccuracyMatrix
from clbench.strategies import EWC, L2, MAS, OnlineEWC

__all__ = ["EWC", "L2", "MAS", "AccuracyMatrix", "OnlineEWC", "fisher", "mas"]
