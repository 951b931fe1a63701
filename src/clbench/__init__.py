"""clbench: continual learning by regularisation, with verified importances."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clbench.experiment.load import load
    from clbench.importance import fisher, mas, mas_local
    from clbench.metrics.accuracy_matrix import AccuracyMatrix
    from clbench.runs.read import read
    from clbench.strategies import (
        AGEM,
        DER,
        ER,
        ERACE,
        EWC,
        EWCDR,
        GEM,
        GPM,
        KFACEWC,
        L2,
        MAS,
        NCCL,
        SI,
        AdamMoments,
        DERpp,
        EWCLoRA,
        ICaRL,
        L2Init,
        LwF,
        Merging,
        NearestMean,
        OnlineEWC,
        RWalk,
        ShrinkPerturb,
    )
    from clbench.train import run
    from clbench.training.monitor import PenaltyMonitor

MODULES = {
    **dict.fromkeys(("fisher", "mas", "mas_local"), "importance"),
    "AccuracyMatrix": "metrics.accuracy_matrix",
    "PenaltyMonitor": "training.monitor",
    "load": "experiment.load",
    "read": "runs.read",
    "run": "train",
}
"""Module of each name that is not a strategy."""

__all__ = [
    "AGEM",
    "DER",
    "ER",
    "ERACE",
    "EWC",
    "EWCDR",
    "GEM",
    "GPM",
    "KFACEWC",
    "L2",
    "MAS",
    "NCCL",
    "SI",
    "AccuracyMatrix",
    "AdamMoments",
    "DERpp",
    "EWCLoRA",
    "ICaRL",
    "L2Init",
    "LwF",
    "Merging",
    "NearestMean",
    "OnlineEWC",
    "PenaltyMonitor",
    "RWalk",
    "ShrinkPerturb",
    "fisher",
    "load",
    "mas",
    "mas_local",
    "read",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a name on first use, because a report needs no torch."""
    if name in __all__:
        return getattr(import_module(f"clbench.{MODULES.get(name, 'strategies')}"), name)
    raise AttributeError(f"module 'clbench' has no attribute {name!r}")
