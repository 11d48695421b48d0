"""Figures of the mixture and its error bars on held-out tasks of the prior: errors, coverage, losses."""

from __future__ import annotations

import numpy as np
import torch

from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.pretraining.prior import FAMILIES
from icrl_gym.pretraining.shards import Examples, as_tensors
from icrl_gym.pretraining.training import Z_LEVEL, Batch, Objective


def by_family(spread: SpreadHead, examples: Examples) -> dict[str, dict[str, float | None]]:
    """Per family, and over "all": tasks, error of the mixture and of its first head alone, their ratio, coverage.

    Errors are geometric means over tasks of RMSE / std; tasks whose values do not vary are left out.
    """
    mixed_BQ, half_BQ = examples.mixed, half_widths(standard_errors(spread, examples), examples)
    covered_B = (np.abs(mixed_BQ - examples.truth) <= half_BQ).mean(axis=1)
    varies_B = values_vary(examples)
    mixed, constructed = (log_errors(values_BQ, examples) for values_BQ in (mixed_BQ, examples.constructed))
    rows = {}
    for number, name in enumerate([*FAMILIES, "all"]):
        own = np.ones(len(examples), bool) if name == "all" else examples.family == number
        used = own & varies_B
        ours, theirs = (float(np.exp(log[used].mean())) if used.any() else None for log in (mixed, constructed))
        rows[name] = {
            "tasks": float(own.sum()),
            "error": ours,
            "constructed": theirs,
            "ratio": float(np.exp((mixed - constructed)[used].mean())) if used.any() else None,
            "worst_ratio": float(np.exp((mixed - constructed)[used].max())) if used.any() else None,
            "coverage": float(covered_B[own].mean()) if own.any() else None,
        }
    return rows


def standard_errors(spread: SpreadHead, examples: Examples) -> np.ndarray:
    """What the spread head says of the mixture's values, (B, Q), in units of the value scale."""
    batch = as_tensors(examples)
    with torch.no_grad():
        return spread(batch["statistics"], batch["query_statistics"]).double().exp().numpy()


def half_widths(stderr_BQ: np.ndarray, examples: Examples) -> np.ndarray:
    """Half of the 90 % interval, (B, Q), with the truth's own noise added in quadrature."""
    return Z_LEVEL * np.hypot(stderr_BQ, examples.truth_stderr)


def log_errors(values_BQ: np.ndarray, examples: Examples) -> np.ndarray:
    """log(RMSE / std of the truth) by task, (B,); -inf for none."""
    rmse_B = np.sqrt(np.square(values_BQ - examples.truth).mean(axis=1, dtype=np.float64))
    with np.errstate(divide="ignore"):
        return np.log(rmse_B / spread_of_truth(examples))


def spread_of_truth(examples: Examples) -> np.ndarray:
    """Standard deviation of the true values over the queries by task, (B,)."""
    return examples.truth.std(axis=1, dtype=np.float64).clip(min=1e-9)


def values_vary(examples: Examples) -> np.ndarray:
    """(B,) bool: the true values spread by more than their noise. Where they do not, relative errors say nothing."""
    std_B = spread_of_truth(examples)
    noise_B = np.sqrt(np.square(examples.truth_stderr).mean(axis=1, dtype=np.float64))
    return (std_B > 2 * noise_B) & (std_B > 1e-4)


def losses_by_family(network: SpreadHead, objective: Objective, batch: Batch, family_B: np.ndarray) -> dict[str, float]:
    """The validation loss of each family that has a task, by name."""
    losses = {}
    for number in np.unique(family_B):
        own = torch.as_tensor(np.flatnonzero(family_B == number), device=batch["error"].device)
        with torch.no_grad():
            losses[list(FAMILIES)[number]] = float(objective(network, {name: x[own] for name, x in batch.items()}))
    return losses
