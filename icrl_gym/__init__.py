"""Value functions without training: in-context policy evaluation for Gymnasium.

Public names load on first use, so that ``import icrl_gym`` is quick and pulls in neither Stable-Baselines3 nor
TensorBoard.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "trajectory": ["Trajectory"],
    "estimand": ["Estimand"],
    "values": ["ValueEstimates"],
    "prompt": ["Prompt"],
    "collection": ["collect"],
    "off_policy": ["UniformMixture", "reweight"],
    "wrappers": ["EvaluateInContext", "RecordTrajectory", "VectorEvaluateInContext", "VectorRecordTrajectory"],
    "features": ["FeatureMap", "sb3_features"],
    "model": ["Setting"],
    "paper": ["paper_forward", "paper_parameters", "paper_prompt"],
    "evaluator": ["InContextEvaluator"],
    "budget": ["PromptBudget", "prompt_budget"],
    "registry": ["Estimator", "estimators", "make_estimator", "tuning_grid"],
    "returns": ["exact_values", "monte_carlo_values"],
    "critics": ["load_demo_policy", "load_sb3_model", "sb3_critic_values"],
    "scoring": ["Score", "score"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll] - from the table


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
