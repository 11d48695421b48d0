"""Figures of the networks on held-out tasks of the prior: errors, coverage, decisions of the gate, losses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from icrl_gym.evaluator.error_bars import SpreadHead
from icrl_gym.evaluator.gate import Gate
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.pretraining.prior import FAMILIES
from icrl_gym.pretraining.shards import Examples, as_tensors
from icrl_gym.pretraining.training import Z_LEVEL, Batch, Objective, with_errors


def by_family(model: Generalist, examples: Examples) -> dict[str, dict[str, float | None]]:
    """Per family, and over "all": tasks, error of the mixture and of its first head, their ratio, coverage.

    Errors are geometric means over tasks of RMSE / std; tasks whose values do not vary are left out.
    """
    batch = with_errors(as_tensors(examples), model.gate)
    truth_BQ = batch["truth"]
    with torch.no_grad():
        log_BQ = model.spread(batch["statistics"], batch["query_statistics"])
    half_BQ = Z_LEVEL * torch.sqrt(torch.exp(2 * log_BQ) + batch["truth_stderr"].square())
    covered_B = (batch["error"].abs() <= half_BQ).float().mean(dim=1).numpy()
    first_BQ = batch["values"][:, 0, 0, 0] - truth_BQ
    varies_B = values_vary(batch)
    mixed, constructed = (log_errors(error, truth_BQ) for error in (batch["error"], first_BQ))
    names = [*FAMILIES, "all"]
    rows = {}
    for number, name in enumerate(names):
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


def log_errors(error_BQ: Tensor, truth_BQ: Tensor) -> np.ndarray:
    """log(RMSE / std of the truth) by task, (B,)."""
    std_B = truth_BQ.std(dim=1, unbiased=False).clamp(min=1e-9)
    return torch.log(error_BQ.square().mean(dim=1).sqrt() / std_B).numpy()


def values_vary(batch: Batch) -> np.ndarray:
    """(B,) bool: the true values spread by more than their noise. Where they do not, relative errors say nothing."""
    std_B = batch["truth"].std(dim=1, unbiased=False)
    noise_B = batch["truth_stderr"].square().mean(dim=1).sqrt()
    return ((std_B > 2 * noise_B) & (std_B > 1e-4)).numpy()


def mean_gates(gate: Gate, batch: Batch) -> dict[str, float]:
    """Mean over tasks of the gate's decisions: shares of the heads, level, pseudo-terminations, trust."""
    with torch.no_grad():
        gates = gate(batch["statistics"])
    shares = {f"share{head}": float(share) for head, share in enumerate(gates.shares_BH.mean(dim=0))}
    others = {
        "free_level": gates.free_level_B,
        "pseudo_terminations": gates.pseudo_terminations_B,
        "trust": gates.trust_B,
    }
    return shares | {name: float(tensor.mean()) for name, tensor in others.items()}


def losses_by_family(
    network: Gate | SpreadHead, objective: Objective, batch: Batch, family_B: np.ndarray
) -> dict[str, float]:
    """The validation loss of each family that has a task, by name."""
    losses = {}
    for number in np.unique(family_B):
        own = torch.as_tensor(np.flatnonzero(family_B == number), device=batch["truth"].device)
        with torch.no_grad():
            losses[list(FAMILIES)[number]] = float(objective(network, {name: x[own] for name, x in batch.items()}))
    return losses
