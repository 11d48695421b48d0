"""Value functions without training: in-context policy evaluation for Gymnasium.

Public names load on first use, so that ``import icrl_gym`` is quick and pulls in neither Stable-Baselines3 nor
TensorBoard.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "values": ["Estimand", "ValueEstimates"],
    "context.trajectory": ["Trajectory"],
    "context.prompt": ["Prompt"],
    "context.log_files": ["Log", "read_log"],
    "context.collection": ["collect"],
    "context.off_policy": ["UniformMixture", "reweight"],
    "context.wrappers": ["RecordTrajectory", "VectorRecordTrajectory"],
    "context.features": ["FeatureMap", "sb3_features"],
    "evaluator.network": ["Setting"],
    "evaluator.paper": ["paper_forward", "paper_parameters", "paper_prompt"],
    "evaluator.estimator": ["InContextEvaluator"],
    "evaluator.rewards": ["RewardValues"],
    "evaluator.many": ["evaluate_many"],
    "evaluator.budget": ["PromptBudget", "prompt_budget"],
    "registry": ["Estimator", "estimators", "make_estimator", "tuning_grid"],
    "live": ["EvaluateInContext", "VectorEvaluateInContext"],
    "ground_truth.values": ["exact_values", "monte_carlo_values"],
    "acting.adapters": ["ArrayObservations", "WeightedReward"],
    "acting.demo_policy": ["load_demo_policy"],
    "acting.sb3_models": ["load_sb3_model"],
    "rivals.critics": ["sb3_critic_values"],
    "scoring.score": ["Score", "score"],
    "workers": ["open_workers"],
    "audit.callback": ["CriticAuditCallback"],
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
