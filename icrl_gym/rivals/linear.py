"""Linear value functions v(x) = w^T phi(x) from one log.

Notation: phi_k = phi(S_k), phi'_k the true successor's, discount_k = gamma (1 - terminated_k). Sources: Sutton & Barto,
*Reinforcement Learning*, 2nd ed., ch. 9, 11, 12; Boyan 1999 (LSTD(lambda)); van Seijen et al. 2016 (true online TD);
Sutton et al. 2009 (GTD2, TDC); Baird 1995 (residual gradient); [WBDZ24] for the linear transformer; Maei 2011 and
Sutton & Barto 12.9 for the importance ratios rho_k, which weigh transition k's equation.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

import numpy as np

from icrl_gym.context.prompt import Prompt
from icrl_gym.context.returns import decayed_sums
from icrl_gym.rivals.base import (
    PromptEstimator,
    all_features,
    check_fraction,
    check_positive,
    importance_ratios,
    trace_decays,
)
from icrl_gym.rivals.basis import Basis, BasisName


@dataclass(eq=False)
class LinearEstimator(PromptEstimator):
    """A weight vector on basis functions.

    Args:
        basis, num_centres, width: see `Basis`.
        relative: estimate values relative to the prompt's constant, which regularisation then shrinks towards.
    """

    weighs_ratios = True
    _: KW_ONLY
    basis: BasisName = "radial"
    num_centres: int = 200
    width: float = 2.0
    relative: bool = True

    def __post_init__(self) -> None:
        self._basis = Basis(self.basis, self.num_centres, self.width)

    def _fit(self, prompt: Prompt) -> None:
        columns_CF = self._basis.fit(prompt)(all_features(prompt))
        self._constant = prompt.constant if self.relative else 0.0
        source_NF = columns_CF[: len(prompt)]
        next_NF = prompt.discounts[:, None] * columns_CF[prompt.successors]
        rewards_N = prompt.rewards - (1.0 - prompt.discounts) * self._constant
        self.weights_ = self._weights(source_NF, next_NF, rewards_N, prompt)

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        return self._constant + self._basis(features_QD) @ self.weights_

    def _weights(self, source_NF: np.ndarray, next_NF: np.ndarray, rewards_N: np.ndarray, prompt: Prompt) -> np.ndarray:
        """w (F,) from phi (N, F), discount * phi' (N, F) and rewards (N,)."""
        raise NotImplementedError


@dataclass(eq=False)
class LSTD(LinearEstimator):
    """LSTD(lambda) with ridge: (Z^T (Phi - discount Phi') + ridge N I) w = Z^T r, Z the eligibility traces of Phi.

    With importance ratios the sums run over rho_k phi_k, and traces pass rho_{k+1} (Bertsekas & Yu 2009).

    Args:
        trace_decay: lambda in [0, 1].
        ridge: weight of the identity in the matrix, per transition, > 0.
    """

    trace_decay: float = 0.0
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(trace_decay=self.trace_decay)
        check_positive(ridge=self.ridge)

    def _weights(self, source_NF: np.ndarray, next_NF: np.ndarray, rewards_N: np.ndarray, prompt: Prompt) -> np.ndarray:
        weighted_NF = importance_ratios(prompt)[:, None] * source_NF
        one_step_NF = np.column_stack([source_NF - next_NF, rewards_N])
        errors_NF = decayed_sums(one_step_NF, trace_decays(prompt, self.trace_decay))
        matrix_FF = weighted_NF.T @ errors_NF[:, :-1] + self.ridge * len(prompt) * np.eye(source_NF.shape[1])
        return np.linalg.solve(matrix_FF, weighted_NF.T @ errors_NF[:, -1])


@dataclass(eq=False)
class BellmanResidual(LinearEstimator):
    """Least squared TD error, the residual-gradient fixed point; noise biases it, since one successor is used twice.

    Args:
        ridge: weight of the squared norm of w, per transition, > 0.
    """

    ridge: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(ridge=self.ridge)

    def _weights(self, source_NF: np.ndarray, next_NF: np.ndarray, rewards_N: np.ndarray, prompt: Prompt) -> np.ndarray:
        difference_NF = source_NF - next_NF
        weighted_NF = importance_ratios(prompt)[:, None] * difference_NF
        matrix_FF = weighted_NF.T @ difference_NF + self.ridge * len(prompt) * np.eye(source_NF.shape[1])
        return np.linalg.solve(matrix_FF, weighted_NF.T @ rewards_N)


class Transition(NamedTuple):
    """One transition as a sweeping method sees it.

    Attributes:
        phi: (F,) basis functions of the state.
        next_phi: (F,) discount * phi'.
        reward: a number, relative to the constant where the method is.
        decay: gamma lambda where this transition continues the one before it, else 0.
        ratio: importance ratio of the action.
    """

    phi: np.ndarray
    next_phi: np.ndarray
    reward: float
    decay: float
    ratio: float


def td_error(weights: np.ndarray, seen: Transition) -> float:
    """reward + discount w^T phi' - w^T phi."""
    return float(seen.reward + weights @ seen.next_phi - weights @ seen.phi)


@dataclass(eq=False)
class SweepingEstimator(LinearEstimator):
    """Stochastic updates in the order of the log, several passes over it.

    Args:
        step_size: step size of the first pass, divided by the mean squared norm of phi; it falls as 1 / sqrt(pass).
        num_passes: number of passes over the log.
    """

    trace_decay = 0.0
    step_size: float = 0.1
    num_passes: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(step_size=self.step_size, num_passes=self.num_passes)
        check_fraction(trace_decay=self.trace_decay)

    def _weights(self, source_NF: np.ndarray, next_NF: np.ndarray, rewards_N: np.ndarray, prompt: Prompt) -> np.ndarray:
        self._start(source_NF.shape[1])
        scale = self.step_size / np.square(source_NF).sum(axis=1).mean()
        decays_N = prompt.discounts * self.trace_decay * prompt.trace_links
        ratio_N = importance_ratios(prompt)
        weights = np.zeros(source_NF.shape[1])
        for sweep in range(self.num_passes):
            self._begin_pass(source_NF.shape[1])
            step = scale / np.sqrt(1.0 + sweep)
            for k in range(len(rewards_N)):
                decay = decays_N[k - 1] if k else 0.0
                seen = Transition(source_NF[k], next_NF[k], rewards_N[k], decay, ratio_N[k])
                weights = self._step(weights, step, seen)
        return weights

    def _start(self, size: int) -> None:
        """Set up what lives through all passes."""

    def _begin_pass(self, size: int) -> None:
        """Set up what lives through one pass."""

    def _step(self, weights: np.ndarray, step: float, seen: Transition) -> np.ndarray:
        """Weights (F,) after one transition, with step size ``step``."""
        raise NotImplementedError


@dataclass(eq=False)
class TDLambda(SweepingEstimator):
    """TD(lambda) with accumulating traces (Sutton & Barto 12.2, off-policy 12.9).

    Args:
        trace_decay: lambda in [0, 1]; 0 is TD(0).
    """

    trace_decay: float = 0.0

    def _begin_pass(self, size: int) -> None:
        self._trace = np.zeros(size)

    def _step(self, weights: np.ndarray, step: float, seen: Transition) -> np.ndarray:
        self._trace = seen.ratio * (seen.decay * self._trace + seen.phi)
        return weights + step * td_error(weights, seen) * self._trace


class TrueOnlineTDLambda(TDLambda):
    """True online TD(lambda) with dutch traces (Sutton & Barto 12.5). Arguments: see `TDLambda`."""

    weighs_ratios = False

    def _begin_pass(self, size: int) -> None:
        self._trace, self._old_value = np.zeros(size), 0.0

    def _step(self, weights: np.ndarray, step: float, seen: Transition) -> np.ndarray:
        phi, decay, gamma = seen.phi, seen.decay, self.prompt_.gamma
        value, next_value = weights @ phi, weights @ seen.next_phi
        if not decay:
            self._old_value = value
        self._trace = decay * self._trace + (1.0 - step * decay * (self._trace @ phi)) * phi
        delta, moved = seen.reward + next_value - value, value - self._old_value
        # V_old is w^T phi' without the discount; next_phi carries it, and a terminal successor is worth 0.
        self._old_value = float(next_value) / gamma if gamma else 0.0
        return weights + step * ((delta + moved) * self._trace - moved * phi)


@dataclass(eq=False)
class GTD2(SweepingEstimator):
    """Gradient TD (Sutton et al. 2009): w += step rho (phi - discount phi')(phi^T h),
    h += step secondary (rho delta - phi^T h) phi.

    Args:
        secondary: ratio of the second step size to the first, > 0.
    """

    secondary: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(secondary=self.secondary)

    def _start(self, size: int) -> None:
        self._helper = np.zeros(size)

    def _step(self, weights: np.ndarray, step: float, seen: Transition) -> np.ndarray:
        delta, correction = td_error(weights, seen), seen.phi @ self._helper
        change = step * seen.ratio * self._direction(delta, correction, seen)
        self._helper = self._helper + self.secondary * step * (seen.ratio * delta - correction) * seen.phi
        return weights + change

    def _direction(self, delta: float, correction: float, seen: Transition) -> np.ndarray:
        """Direction (F,) of the step of the weights, without the ratio."""
        return (seen.phi - seen.next_phi) * correction


class TDC(GTD2):
    """TD with gradient correction (Sutton et al. 2009): w += step rho (delta phi - discount phi' (phi^T h))."""

    def _direction(self, delta: float, correction: float, seen: Transition) -> np.ndarray:
        return delta * seen.phi - seen.next_phi * correction


@dataclass(eq=False)
class LinearInContextTD(LinearEstimator):
    """The linear-attention ancestor [WBDZ24]: L layers are L steps of batch TD(0) on the features themselves.

    w <- w + (step / n) sum_k rho_k delta_k phi_k, from zero; its preconditioner C is step times the identity.

    Args:
        num_layers: number of steps.
        step_size: step size, divided by the mean squared norm of phi.
    """

    basis: BasisName = field(default="linear", init=False)
    num_centres: int = field(default=200, init=False)
    width: float = field(default=2.0, init=False)
    num_layers: int = 30
    step_size: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(num_layers=self.num_layers, step_size=self.step_size)

    def _weights(self, source_NF: np.ndarray, next_NF: np.ndarray, rewards_N: np.ndarray, prompt: Prompt) -> np.ndarray:
        step = self.step_size / np.square(source_NF).sum(axis=1).mean() / len(prompt)
        weights, ratio_N = np.zeros(source_NF.shape[1]), importance_ratios(prompt)
        for _ in range(self.num_layers):
            delta_N = rewards_N + next_NF @ weights - source_NF @ weights
            weights = weights + step * source_NF.T @ (ratio_N * delta_N)
        return weights
