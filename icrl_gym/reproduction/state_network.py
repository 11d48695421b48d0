"""The sparse transformer of the emergence results, run over the states of finite processes instead of over columns.

With A reading features only and V writing the current memory only ([XLCLCZ26] App. F.2; the sparsity pattern is
inferred), a column's memory depends on its state alone. So n columns collapse into S states whose keys count as often
as they were visited: exactly the printed forward pass, at a cost that does not grow with n (ours; the tests hold the
two against each other).

Shape legend: `...` are seeds and prompts, S states, D features, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_gym.reproduction.mrps import MRPBatch


@dataclass(frozen=True, eq=False)
class Parameters:
    """Parameters that training may change.

    Attributes:
        value_row: (..., 3), V's last row over (reward, target, current); Theorem 1 has alpha (1, 1, -1).
        score: (..., D, D), A over the features; Theorem 1 has the identity.
    """

    value_row: Tensor
    score: Tensor


@dataclass(frozen=True, eq=False)
class Contexts:
    """One walk per process, counted.

    Attributes:
        features: (..., S, D).
        reward: (..., S), received on leaving a state.
        log_counts: (..., S) log of how often a state is a source, -inf where never.
        next_state: (..., S, S) empirical transition probabilities; zero rows for states that are no source.
        query: (...) int, the state of the last column.
    """

    features: Tensor
    reward: Tensor
    log_counts: Tensor
    next_state: Tensor
    query: Tensor


def construction(num_features: int, alpha: float = 1.0, scale: float = 1.0) -> Parameters:
    """Theorem 1's parameters; ``scale`` multiplies A."""
    value_row = alpha * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    return Parameters(value_row, scale * torch.eye(num_features, dtype=torch.float64))


def count(mrps: MRPBatch, states: np.ndarray, device: str = "cpu") -> Contexts:
    """Contexts of walks: states (B, n + 1), the last one the query."""
    num_mrps, num_states = mrps.reward.shape
    every = np.arange(num_mrps)[:, None]
    flat = (every * num_states + states[:, :-1]) * num_states + states[:, 1:]
    visits = np.bincount(flat.ravel(), minlength=num_mrps * num_states**2).reshape(num_mrps, num_states, num_states)
    counts = visits.sum(axis=2)
    with np.errstate(divide="ignore"):
        log_counts = np.log(counts)
    next_state = visits / np.maximum(counts, 1)[..., None]

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=device)

    return Contexts(
        tensor(mrps.features), tensor(mrps.reward), tensor(log_counts), tensor(next_state), tensor(states[:, -1])
    )


def grouped(contexts: Contexts, *shape: int) -> Contexts:
    """The same prompts with their leading axis split into ``shape``."""
    return Contexts(*(array.reshape(*shape, *array.shape[1:]) for array in vars(contexts).values()))


def key_scores(parameters: Parameters, destination_QD: Tensor, contexts: Contexts) -> Tensor:
    """x(source)^T A x(destination) plus the log count of the source, (..., Q, S)."""
    scores_QS = destination_QD @ (contexts.features @ parameters.score).mT
    return scores_QS + contexts.log_counts.unsqueeze(-2)


def memory(parameters: Parameters, contexts: Contexts, gamma: float, num_layers: int) -> Tensor:
    """The memory that attention reads after L layers, (..., S): values anywhere are softmax(key_scores) @ memory.

    Per layer v(s) <- v(s) + sum_s' w(s'|s) e(s'), e(s') = a_r r(s') + a_t gamma (P v)(s') + a_c v(s'), where w(s'|s) is
    the share of attention that falls on the columns of s'. Parameters carry the leading axes of the contexts, with
    ones where they are shared.
    """
    attention_SS = torch.softmax(key_scores(parameters, contexts.features, contexts), dim=-1)
    reward, target, current = (parameters.value_row[..., i, None, None] for i in range(3))
    identity_SS = torch.eye(attention_SS.shape[-1], dtype=attention_SS.dtype, device=attention_SS.device)
    residual_SS = (target * gamma * contexts.next_state + current * identity_SS) @ attention_SS
    gained_S1 = reward * contexts.reward.unsqueeze(-1)
    memory_S1 = gained_S1
    for _ in range(num_layers - 1):
        memory_S1 = memory_S1 + residual_SS @ memory_S1 + gained_S1
    return memory_S1.squeeze(-1)


def values(parameters: Parameters, contexts: Contexts, gamma: float, num_layers: int) -> Tensor:
    """Values of every state after L layers, (..., S)."""
    return read(parameters, contexts.features, contexts, memory(parameters, contexts, gamma, num_layers))


def read(parameters: Parameters, destination_QD: Tensor, contexts: Contexts, memory_S: Tensor) -> Tensor:
    """Values at features (..., Q, D), (..., Q)."""
    attention_QS = torch.softmax(key_scores(parameters, destination_QD, contexts), dim=-1)
    return (attention_QS @ memory_S.unsqueeze(-1)).squeeze(-1)


def sensitivity(parameters: Parameters, contexts: Contexts, memory_S: Tensor) -> Tensor:
    """Gradient of every state's value with respect to its own features as a query, (..., S, D).

    d/dx softmax(scores) @ m = sum_s w_s (m_s - mean m) A^T x(s).
    """
    attention_SS = torch.softmax(key_scores(parameters, contexts.features, contexts), dim=-1)
    centred_SS = memory_S.unsqueeze(-2) - attention_SS @ memory_S.unsqueeze(-1)
    return (attention_SS * centred_SS) @ (contexts.features @ parameters.score)


def at_query(contexts: Contexts, values_S: Tensor) -> Tensor:
    """The read-out of the last column, (...)."""
    return values_S.gather(-1, contexts.query.expand(values_S.shape[:-1]).unsqueeze(-1)).squeeze(-1)
