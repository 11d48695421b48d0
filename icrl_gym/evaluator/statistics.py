"""What the error bars are read from: scale-free statistics of a prompt, and of queries, under the first head.

None of them changes when rewards are multiplied by c > 0 or features are permuted, shifted or scaled before
standardisation, so values stay equivariant to the scale of rewards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from icrl_gym.context.prompt import Prompt
from icrl_gym.context.returns import decayed_sums
from icrl_gym.evaluator.kernel import Kernel, lambda_return_errors
from icrl_gym.evaluator.network import CompiledPrompt
from icrl_gym.evaluator.predictability import predictability

STATISTICS = (
    "log_transitions",
    "log_one_minus_gamma",
    "log_terminations",
    "log_stretches",
    "no_termination",
    "share_terminated",  # of the stretches
    "log_stretch_length",
    "log_dimension",
    "reward_variation",  # tanh(std / mean |r|)
    "constant_reward",
    "reward_sign",  # mean / mean |r|
    "step_size",  # log mean squared step between neighbours, over twice the variance
    "return_autocorrelation",
    "spread",  # log std of the first head's values over |constant|
    "level_shift",  # free level against the constant, in standard deviations of the values
    "explained",  # log RMS of the first head's lambda-return errors over the constant's
    "support",  # log mean mass of the first head's attention, in sources
    "predictability",  # of the next step (`icrl_gym.evaluator.predictability`)
)
QUERY_STATISTICS = ("disagreement", "level_shift", "distance_from_constant", "support", "adaptation", "consensus")
_RETURN_TRACE = 0.9
_SMALL = 1e-6


def has_equal_rewards(prompt: Prompt) -> bool:
    """Whether all rewards of the context are equal, but for rounding."""
    return bool(prompt.rewards.std() <= _SMALL * np.abs(prompt.rewards).mean())


def prompt_statistics(prompt: Prompt, first: CompiledPrompt) -> np.ndarray:
    """Statistics of one prompt in the order of `STATISTICS`, (S,) float64, all finite.

    Args:
        prompt: the context.
        first: the context compiled under the first head.
    """
    n = len(prompt)
    terminated = prompt.num_terminations
    stretches = max(1, int((~prompt.trace_links).sum()))
    rewards, magnitude = prompt.rewards, np.abs(prompt.rewards).mean()
    x_ND, links_N = prompt.source_features, prompt.trace_links[:-1]
    steps_M = np.square(np.diff(x_ND, axis=0)[links_N]).sum(axis=1)
    values_C, mass_C = first.at_columns
    values_N = values_C[:n]
    constant, spread = constant_of(first), values_N.std()
    errors_N = lambda_return_errors(prompt, _RETURN_TRACE)
    left_N = _lambda_errors(prompt, values_C)
    mass_N = mass_C[:n] * max(first.kernel.setting.sink, 1.0)
    statistics = [
        math.log(n),
        math.log(1 - prompt.gamma),
        math.log1p(terminated),
        math.log(stretches),
        float(terminated == 0),
        terminated / stretches,
        math.log(n / stretches),
        math.log(prompt.effective_dimension),
        math.tanh(_ratio(rewards.std(), magnitude)),
        float(has_equal_rewards(prompt)),
        _ratio(rewards.mean(), magnitude),
        _log_ratio(steps_M.mean() if len(steps_M) else 0.0, 2 * x_ND.var(axis=0).sum()),
        _autocorrelation(errors_N, prompt.trace_links),
        _log_ratio(spread, abs(constant)),
        math.tanh(_ratio(first.level_shift, spread)),
        _log_ratio(_rms(left_N), _rms(errors_N)),
        _log_ratio(mass_N.mean(), 1.0),
        max(predictability(prompt), -1.0),
    ]
    return np.array(statistics)


def source_values(compiled: CompiledPrompt) -> np.ndarray:
    """Values at the sources, (N,) float64."""
    return compiled.at_columns[0][: len(compiled.prompt)]


def constant_of(compiled: CompiledPrompt) -> float:
    return float(compiled.readout.constants_LR[-1, 0])


def attention_mass(kernel: Kernel, attention_BN: Tensor) -> np.ndarray:
    """Attention that falls on sources, in units of the sink's weight, (B,) float64."""
    return attention_BN.sum(dim=1).double().cpu().numpy() * max(kernel.setting.sink, 1.0)


def value_scale(compiled: CompiledPrompt) -> float:
    """The unit of the prompt's values: their standard deviation, at least a thousandth of the constant; 0 for none."""
    return float(np.hypot(source_values(compiled).std(), 1e-3 * constant_of(compiled)))


@dataclass(frozen=True, eq=False)
class QueryFacts:
    """What the first head says of a prompt's queries.

    Attributes:
        values_Q: the first head's values, in units of reward.
        mass_Q: attention that falls on sources, not on the sink.
        constant, level_shift, scale: the prompt's constant, its free level above that, and the unit of its values, all
            in units of reward.
    """

    values_Q: np.ndarray
    mass_Q: np.ndarray
    constant: float
    level_shift: float
    scale: float

    @classmethod
    def of(cls, first: CompiledPrompt, features_QD: np.ndarray) -> QueryFacts:
        """Read off the first head's compiled context."""
        attention_QN = first.attend(features_QD)
        values_Q = first.values(attention_QN)[-1].double().cpu().numpy()
        mass_Q = attention_mass(first.kernel, attention_QN)
        return cls(values_Q, mass_Q, constant_of(first), first.level_shift, value_scale(first))


def query_statistics(facts: QueryFacts, by_head_HQ: np.ndarray, final_Q: np.ndarray) -> np.ndarray:
    """Statistics of queries in the order of `QUERY_STATISTICS`, (Q, T), scale-free.

    Args:
        facts: the first head's word on the prompt and the queries.
        by_head_HQ: values under each head that answers.
        final_Q: the mixture's values; "consensus" is what robust weights made of the plain mean.
    """
    scale = facts.scale or 1.0
    mixed_Q = by_head_HQ.mean(axis=0)
    disagreement_Q = np.sqrt(np.square(by_head_HQ - mixed_Q).mean(axis=0))
    columns = [
        disagreement_Q / scale,
        np.full(len(mixed_Q), abs(facts.level_shift) / scale),
        np.abs(final_Q - facts.constant) / scale,
        facts.mass_Q,
        np.abs(final_Q - facts.values_Q) / scale,
        np.abs(final_Q - mixed_Q) / scale,
    ]
    return np.log(np.clip(np.stack(columns, axis=1), 1e-4, 1e4))


def _lambda_errors(prompt: Prompt, values_C: np.ndarray) -> np.ndarray:
    """TD(lambda) errors of values of the columns on their own context, (N,)."""
    errors_N = prompt.rewards + prompt.discounts * values_C[prompt.successors] - values_C[: len(prompt)]
    return decayed_sums(errors_N, prompt.discounts * _RETURN_TRACE * prompt.trace_links)


def _autocorrelation(x_N: np.ndarray, links_N: np.ndarray) -> float:
    x_N = x_N - x_N.mean()
    inside = links_N[:-1]
    return _ratio(float((x_N[:-1] * x_N[1:])[inside].mean()) if inside.any() else 0.0, float(np.square(x_N).mean()))


def _rms(x_N: np.ndarray) -> float:
    return float(np.sqrt(np.square(x_N).mean()))


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else 0.0


def _log_ratio(numerator: float, denominator: float) -> float:
    """log of a ratio, cut to [1e-4, 1e4]; both zero counts as the least."""
    if not denominator > 0:
        return math.log(1e4) if numerator > 0 else math.log(1e-4)
    return math.log(min(max(numerator / denominator, 1e-4), 1e4))
