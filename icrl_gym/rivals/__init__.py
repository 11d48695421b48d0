"""Classical policy evaluation from one log, on the same prompts as the in-context evaluator.

Every class has the estimators' protocol (``fit(trajectory, gamma, policy)``, ``predict(observations)``), a documented
default and a tuning grid in `grids`.
"""

from icrl_gym.rivals.kernel import GaussianProcessTD, KernelBasedRL, NadarayaWatson, NearestNeighbours
from icrl_gym.rivals.linear import GTD2, LSTD, TDC, BellmanResidual, LinearInContextTD, TDLambda, TrueOnlineTDLambda
from icrl_gym.rivals.neural import FittedQEvaluation, FittedValueNetwork
from icrl_gym.rivals.tabular import CertaintyEquivalence

__all__ = [
    "GTD2",
    "LSTD",
    "TDC",
    "BellmanResidual",
    "CertaintyEquivalence",
    "FittedQEvaluation",
    "FittedValueNetwork",
    "GaussianProcessTD",
    "KernelBasedRL",
    "LinearInContextTD",
    "NadarayaWatson",
    "NearestNeighbours",
    "TDLambda",
    "TrueOnlineTDLambda",
]
