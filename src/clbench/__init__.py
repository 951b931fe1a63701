"""clbench: continual learning by regularisation, with importances that are verified."""

from clbench.importance import fisher, mas, mas_local
from clbench.metrics import AccuracyMatrix
from clbench.strategies import AGEM, DER, ER, EWC, L2, MAS, NCCL, SI, DERpp, LwF, OnlineEWC

__all__ = [
    "AGEM",
    "DER",
    "ER",
    "EWC",
    "L2",
    "MAS",
    "NCCL",
    "SI",
    "AccuracyMatrix",
    "DERpp",
    "LwF",
    "OnlineEWC",
    "fisher",
    "mas",
    "mas_local",
]
