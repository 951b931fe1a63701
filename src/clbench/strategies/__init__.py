"""Strategies for continual learning. Each one is a Lightning callback."""

from clbench.strategies.agem import AGEM
from clbench.strategies.base import Strategy
from clbench.strategies.der import DER, DERpp
from clbench.strategies.er import ER
from clbench.strategies.ewc import EWC, OnlineEWC
from clbench.strategies.ewc_lora import EWCLoRA
from clbench.strategies.gem import GEM
from clbench.strategies.gpm import GPM
from clbench.strategies.independent import Independent
from clbench.strategies.joint import Joint, JointFromScratch
from clbench.strategies.l2 import L2
from clbench.strategies.learner_strategy import LearnerStrategy
from clbench.strategies.lwf import LwF
from clbench.strategies.mas import MAS
from clbench.strategies.measured import ImportanceStrategy
from clbench.strategies.nccl import NCCL
from clbench.strategies.penalty import QuadraticStrategy
from clbench.strategies.plateau import Plateau
from clbench.strategies.rehearsal import RehearsalStrategy
from clbench.strategies.si import SI

__all__ = [
    "AGEM",
    "DER",
    "ER",
    "EWC",
    "GEM",
    "GPM",
    "L2",
    "MAS",
    "NCCL",
    "SI",
    "DERpp",
    "EWCLoRA",
    "ImportanceStrategy",
    "Independent",
    "Joint",
    "JointFromScratch",
    "LearnerStrategy",
    "LwF",
    "OnlineEWC",
    "Plateau",
    "QuadraticStrategy",
    "RehearsalStrategy",
    "Strategy",
]
