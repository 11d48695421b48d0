"""Gymnasium wrappers that record a trajectory, or evaluate in context while an agent runs; each with a vector twin."""

from icrl_gym.wrappers.live import INFO_KEY, LIVE_TAG, EvaluateInContext, VectorEvaluateInContext
from icrl_gym.wrappers.recording import RecordTrajectory, VectorRecordTrajectory

__all__ = [
    "INFO_KEY",
    "LIVE_TAG",
    "EvaluateInContext",
    "RecordTrajectory",
    "VectorEvaluateInContext",
    "VectorRecordTrajectory",
]
