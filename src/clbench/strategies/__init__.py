"""Strategies for continual learning. Each one is a Lightning callback."""

from clbench.strategies.adam_moments import AdamMoments
from clbench.strategies.agem import AGEM
from clbench.strategies.base import Strategy
from clbench.strategies.der import DER, DERpp
from clbench.strategies.er import ER
from clbench.strategies.er_ace import ERACE
from clbench.strategies.ewc import EWC, OnlineEWC
from clbench.strategies.ewc_dr import EWCDR
from clbench.strategies.ewc_lora import EWCLoRA
from clbench.strategies.gem import GEM
from clbench.strategies.gpm import GPM
from clbench.strategies.icarl import ICaRL
from clbench.strategies.independent import Independent
from clbench.strategies.joint import Joint, JointFromScratch
from clbench.strategies.kfac_ewc import KFACEWC
from clbench.strategies.l2 import L2
from clbench.strategies.l2_init import L2Init
from clbench.strategies.learner_strategy import LearnerStrategy
from clbench.strategies.lwf import LwF
from clbench.strategies.mas import MAS
from clbench.strategies.measured import ImportanceStrategy
from clbench.strategies.merging import Merging
from clbench.strategies.nccl import NCCL
from clbench.strategies.nearest_mean import NearestMean
from clbench.strategies.penalty import QuadraticStrategy
from clbench.strategies.plateau import Plateau
from clbench.strategies.rehearsal import RehearsalStrategy
from clbench.strategies.rwalk import RWalk
from clbench.strategies.shrink_perturb import ShrinkPerturb
from clbench.strategies.si import SI

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
    "AdamMoments",
    "DERpp",
    "EWCLoRA",
    "ICaRL",
    "ImportanceStrategy",
    "Independent",
    "Joint",
    "JointFromScratch",
    "L2Init",
    "LearnerStrategy",
    "LwF",
    "Merging",
    "NearestMean",
    "OnlineEWC",
    "Plateau",
    "QuadraticStrategy",
    "RWalk",
    "RehearsalStrategy",
    "ShrinkPerturb",
    "Strategy",
]
