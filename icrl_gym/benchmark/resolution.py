"""Errors that the truth's own noise can tell from zero."""

from __future__ import annotations


def resolved_error(error: float, noise_floor: float, truth_std: float, num_queries: int) -> float:
    """An error with the truth's noise subtracted, or the smallest that this noise lets us see if it is less.

    RMSE^2 over n states is known up to noise^2 sqrt(2 / n). What is smaller than that cannot be told from zero and
    counts as its square root, so that no ratio or geometric mean rests on it.

    Args:
        error: RMSE / std, corrected as `icrl_gym.score` does.
        noise_floor: of that score, in units of the reward.
        truth_std: corrected spread of the truth, in the same units; positive.
        num_queries: states, n.
    """
    return max(error, noise_floor * (2.0 / num_queries) ** 0.25 / truth_std)
