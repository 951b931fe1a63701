"""Strategies: Lightning callbacks that work on any LightningModule."""

from clbench.strategies.base import Strategy
from clbench.strategies.ewc import EWC, OnlineEWC
from clbench.strategies.joint import Joint
from clbench.strategies.l2 import L2
from clbench.strategies.mas import MAS
from clbench.strategies.measured import ImportanceStrategy
from clbench.strategies.quadratic import QuadraticStrategy

__all__ = ["EWC", "L2", "MAS", "ImportanceStrategy", "Joint", "OnlineEWC", "QuadraticStrategy", "Strategy"]
