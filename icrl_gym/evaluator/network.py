"""The evaluator's form of the transformer: a `Setting` says which one, `compile_prompt` runs it on a prompt.

Because queries are never sources, a whole forward pass over the context can be compiled into one memory vector per
layer; a query then costs one row of attention, and any batch of queries equals one-by-one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.recursion import (
    Context,
    Gates,
    Readout,
    Trace,
    gaussian_attention,
    inner_product_attention,
    move_landmark_level,
    move_level,
    run_layers,
    solve_equilibrium,
    solve_landmarks,
)
from icrl_gym.evaluator.relevance import RELEVANCES, Relevance, relevant_features

EQUILIBRIUM: Literal["equilibrium"] = "equilibrium"
GROWTH_LIMIT = 2.0  # the last layer's change may exceed the first ones' by this factor before the fallback
PROBE_FREQUENCY = 37.0  # radians per standard deviation: neighbouring sources get unrelated probe rewards


@dataclass(frozen=True)
class Setting:
    """One parameter setting of the network (theory section 7). Defaults: the constructed evaluator at equilibrium.

    Attributes:
        kernel: "gaussian" (key biases turn the inner product into a Gaussian) or "inner_product" (the paper's).
        num_layers: depth, or "equilibrium" for the limit of infinitely many tied layers.
        bandwidth: Gaussian width in standard deviations of the context, times sqrt(effective dimension / 4).
        sink: weight of the sink, in units of one source at distance zero; 0 for none.
        forgetting: eta >= 0, a ridge towards the prompt's constant; with landmarks in units of the attention's squares.
        trace_decay: lambda in [0, 1].
        step_size: alpha > 0.
        averaging: beta in [0, 1].
        constant_mode: solve the constant in every layer (finite depth only; an equilibrium is relative to the
            constant).
        average_ends: true successors of unterminated ends are averagers.
        start_at_constant: start all columns at the prompt's constant instead of zero.
        pseudo_terminations: p >= 0, Laplace's rule on the hazard: every discount is multiplied by N / (N + p), as if p
            more terminations had been seen, spread evenly over the context.
        relevance: weight of each feature in a Gaussian kernel (relevance.py).
        free_level: share of the unpenalised intercept in an equilibrium's constant, in [-1, 1]; 0 is the prompt's own.
        landmarks: at most this many distinct states of the context, evenly spaced along it, are the keys of an
            equilibrium (`solve_landmarks`), each with the weight of N / K sources; 0: every source is a key.
    """

    kernel: Literal["gaussian", "inner_product"] = "gaussian"
    num_layers: int | Literal["equilibrium"] = EQUILIBRIUM
    bandwidth: float = 1.6
    sink: float = 300.0
    forgetting: float = 1e-4
    trace_decay: float = 0.0
    step_size: float = 1.0
    averaging: float = 0.0
    constant_mode: bool = True
    average_ends: bool = True
    start_at_constant: bool = True
    pseudo_terminations: float = 0.0
    relevance: Relevance = "uniform"
    free_level: float = 0.0
    landmarks: int = 0

    def __post_init__(self) -> None:
        """Check every range; raise ValueError or TypeError naming the argument."""
        if self.kernel not in ("gaussian", "inner_product"):
            raise ValueError(f"kernel must be 'gaussian' or 'inner_product', got {self.kernel!r}")
        whole = isinstance(self.num_layers, (int, np.integer)) and not isinstance(self.num_layers, bool)
        if self.num_layers != EQUILIBRIUM and not (whole and self.num_layers >= 1):
            raise ValueError(f"num_layers must be an int >= 1 or 'equilibrium', got {self.num_layers!r}")
        limits = {
            "bandwidth": (0.0, math.inf),
            "sink": (0.0, math.inf),
            "forgetting": (0.0, 1.0),
            "trace_decay": (0.0, 1.0),
            "pseudo_terminations": (0.0, math.inf),
            "free_level": (-1.0, 1.0),
            "step_size": (0.0, math.inf),
            "averaging": (0.0, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float, np.number)) or not low <= value <= high or value == math.inf:
                raise ValueError(f"{name} must be a finite number in [{low:g}, {high:g}], got {value!r}")
        if not isinstance(self.landmarks, (int, np.integer)) or isinstance(self.landmarks, bool) or self.landmarks < 0:
            raise ValueError(f"landmarks must be an int >= 0, got {self.landmarks!r}")
        if self.landmarks and not self.allows_landmarks:
            raise ValueError(
                "landmarks need kernel='gaussian', num_layers='equilibrium', a positive forgetting and averaging=0"
            )
        if self.relevance not in RELEVANCES:
            raise ValueError(f"relevance must be one of {sorted(RELEVANCES)}, got {self.relevance!r}")
        if self.bandwidth == 0 or self.step_size == 0:
            raise ValueError("bandwidth and step_size must be positive, got 0")
        if self.free_level and not (self.at_equilibrium and (self.forgetting or self.averaging)):
            raise ValueError("free_level needs num_layers='equilibrium' and a positive forgetting or averaging")
        if self.kernel == "inner_product" and self.sink:
            raise ValueError(f"sink must be 0 with kernel 'inner_product', got {self.sink}")

    @property
    def at_equilibrium(self) -> bool:
        return self.num_layers == EQUILIBRIUM

    @property
    def allows_landmarks(self) -> bool:
        """Whether the other attributes go together with landmarks."""
        return self.kernel == "gaussian" and self.at_equilibrium and self.forgetting > 0 and not self.averaging

    @property
    def gates(self) -> Gates:
        return Gates(
            self.step_size, self.averaging, self.forgetting, self.constant_mode, self.average_ends, self.free_level
        )

    def fallback(self) -> Setting:
        """The averager that is certain to contract: beta = alpha = 1, no constant mode (theory section 7)."""
        return replace(
            self,
            averaging=1.0,
            step_size=1.0,
            forgetting=0.0,
            constant_mode=False,
            average_ends=True,
            start_at_constant=True,
            free_level=0.0,
            landmarks=0,
        )


THEOREM_1 = Setting(
    kernel="inner_product",
    num_layers=24,
    bandwidth=1.0,
    sink=0.0,
    forgetting=0.0,
    constant_mode=False,
    average_ends=False,
    start_at_constant=False,
)


class Keys(NamedTuple):
    """What columns and queries attend to.

    Attributes:
        rows: of the sources that are keys.
        log_weights: of these keys.
    """

    rows: np.ndarray | slice
    log_weights: Tensor


@dataclass(frozen=True, eq=False)
class CompiledPrompt:
    """A prompt run through the network under one setting, ready for queries.

    Attributes:
        prompt: what was run.
        setting: the setting that was used (the fallback's, where it took over).
        context: the prompt as tensors, with one reward channel.
        attention_CN: (C, N) attention of all columns over the keys: the sources, or the landmarks.
        readout: constants and memories per layer.
        keys: what queries attend to.
        fell_back: whether the averager took over.
    """

    prompt: Prompt
    setting: Setting
    context: Context
    attention_CN: Tensor
    readout: Readout
    keys: Keys
    fell_back: bool

    def attend(self, features_QD: np.ndarray) -> Tensor:
        """Attention of queries over the keys, (Q, N)."""
        return _attention(features_QD, self.prompt, self.setting, self.context.rewards_NR, self.keys)

    def values(self, attention_QN: Tensor) -> Tensor:
        """Values of queries after each layer, (L, Q)."""
        return self.readout(attention_QN)[..., 0]

    @cached_property
    def level_shift(self) -> float:
        """How far the free level lies above an equilibrium's constant; 0 where it has none or is not determined."""
        return float(with_free_level(self, 1.0).readout.constants_LR[-1, 0] - self.readout.constants_LR[-1, 0])

    @cached_property
    def reward_memory(self) -> Readout:
        """The read-out of the last layer as a linear function of the N rewards (R = N unit reward functions)."""
        unit_NN = torch.eye(len(self.prompt), dtype=self.attention_CN.dtype, device=self.attention_CN.device)
        readout = _run(_with_rewards(self.context, unit_NN), self.attention_CN, self.setting)
        return Readout(readout.constants_LR[-1:], readout.memories_LNR[-1:])

    def attribution(self, attention_QN: Tensor) -> Tensor:
        """W (Q, N) with values = W @ rewards."""
        return self.reward_memory(attention_QN)[0]


def compile_prompt(
    prompt: Prompt,
    setting: Setting,
    *,
    log_weights: np.ndarray | None = None,
    importance_ratios: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
    fall_back: bool = True,
    rewards: np.ndarray | None = None,
) -> CompiledPrompt:
    """Run the context through the network.

    The averager takes over where the recursion grows. That is decided once per prompt: the change per layer has to grow
    for the given rewards and, where it does, for a probe reward function of the features alone as well; so wherever the
    recursion is stable values are linear in the rewards.

    Args:
        prompt: the context.
        setting: the network.
        log_weights: (N,) log weights of the sources (bootstrap weights, say); -inf drops a source.
        importance_ratios: (N,) pi / mu of the logged actions, default the prompt's own; they weigh the sources and
            enter the traces.
        device, dtype: where and how to compute; landmarks are always solved in float64, which costs little there.
        fall_back: False runs the setting as it is, whatever happens.
        rewards: (N, R) other reward functions on the same context; default the prompt's own as (N, 1).

    Raises:
        ValueError: all sources are dropped, or weights or ratios are not N numbers of the right kind.
    """
    given = prompt.importance_ratios if importance_ratios is None else importance_ratios
    ratios = _check_ratios(given, len(prompt))
    log_weights = _check_log_weights(log_weights, ratios)
    rewards = prompt.rewards[:, None] if rewards is None else rewards
    tensor = _tensor_maker(device, torch.float64 if setting.landmarks else dtype)
    log_weights_N = tensor(log_weights)
    context = _context(prompt, setting, tensor(rewards), log_weights_N, ratios)
    keys = _keys(prompt, setting, log_weights_N)
    attention_CN = _column_attention(prompt, setting, context, keys)
    probe_N1 = tensor(probe_rewards(prompt.source_features))[:, None]
    if setting.at_equilibrium:  # one more right-hand side costs nothing
        with_probe_NR = torch.cat([context.rewards_NR, probe_N1], dim=-1)
        both = _run(_with_rewards(context, with_probe_NR), attention_CN, setting)
        readout, fell_back = _without_probe(both), fall_back and _exceeds(both, prompt.gamma)
    else:
        readout = _run(context, attention_CN, setting)
        fell_back = fall_back and _grows(readout)
        fell_back = fell_back and _grows(_run(_with_rewards(context, probe_N1), attention_CN, setting))
    if fell_back:
        setting, had_landmarks = setting.fallback(), setting.landmarks > 0
        if had_landmarks:
            keys = _keys(prompt, setting, log_weights_N)
            attention_CN = _column_attention(prompt, setting, context, keys)
        readout = _run(context, attention_CN, setting)
    return CompiledPrompt(prompt, setting, context, attention_CN, readout, keys, fell_back)


def with_free_level(compiled: CompiledPrompt, free_level: float) -> CompiledPrompt:
    """The same equilibrium at another free level, from the factors that are there; without factors, as it is.

    Args:
        compiled: with a setting whose free level is 0.
        free_level: in [-1, 1].
    """
    readout = compiled.readout
    if readout.factors is None or not free_level:
        return compiled
    setting = replace(compiled.setting, free_level=free_level)
    solved = (setting.gates, readout.factors, readout.constants_LR[-1:], readout.memories_LNR[-1])
    if setting.landmarks:
        constant_1R, memory_NR = move_landmark_level(compiled.context, compiled.attention_CN, *solved)
    else:
        constant_1R, memory_NR = move_level(compiled.context, *solved)
    values_CR = constant_1R + compiled.attention_CN @ memory_NR
    columns_LCR = torch.stack([constant_1R.expand_as(values_CR), values_CR])
    moved = Readout(constant_1R, memory_NR.unsqueeze(0), columns_LCR, readout.factors)
    return replace(compiled, setting=setting, readout=moved)


def _check_ratios(ratios: np.ndarray | None, num_sources: int) -> np.ndarray:
    if ratios is None:
        return np.ones(num_sources)
    ratios = np.asarray(ratios, dtype=np.float64)
    if ratios.shape != (num_sources,) or not (np.isfinite(ratios) & (ratios >= 0)).all():
        raise ValueError(f"importance_ratios must be {num_sources} finite numbers >= 0, got shape {ratios.shape}")
    return ratios


def _check_log_weights(log_weights: np.ndarray | None, ratios: np.ndarray) -> np.ndarray:
    log_weights = np.zeros(len(ratios)) if log_weights is None else np.asarray(log_weights, dtype=np.float64)
    if log_weights.shape != ratios.shape or np.isnan(log_weights).any() or (log_weights == np.inf).any():
        raise ValueError(f"log_weights must be {len(ratios)} numbers below infinity, got shape {log_weights.shape}")
    with np.errstate(divide="ignore"):
        log_weights = log_weights + np.log(ratios)
    if np.isneginf(log_weights).all():
        raise ValueError("log_weights, importance_ratios: every source is dropped; at least one must stay")
    return log_weights


def probe_rewards(features_ND: np.ndarray) -> np.ndarray:
    """A reward function in [-1, 1] of the features alone, (N,), unrelated between neighbours."""
    direction_D = np.cos(1.0 + np.arange(features_ND.shape[1]))
    return np.cos(PROBE_FREQUENCY * (features_ND @ direction_D) + 0.5)


def _without_probe(readout: Readout) -> Readout:
    assert readout.columns_LCR is not None
    parts = (readout.constants_LR, readout.memories_LNR, readout.columns_LCR)
    return Readout(*(part[..., :-1] for part in parts), factors=readout.factors)


def _exceeds(readout: Readout, gamma: float) -> bool:
    """Whether an equilibrium's last channel, for rewards within [-1, 1], exceeds every value such rewards can have."""
    assert readout.columns_LCR is not None
    values_CR = readout.columns_LCR[-1]
    return not bool(torch.isfinite(values_CR).all()) or bool(values_CR[:, -1].abs().max() > 1.0 / (1.0 - gamma))


def _grows(readout: Readout) -> bool:
    """Whether the change per layer grows from the first layers to the last, in any channel."""
    assert readout.columns_LCR is not None
    columns_LCR = readout.columns_LCR
    if not bool(torch.isfinite(columns_LCR).all()):
        return True
    first_R = torch.maximum(_change(columns_LCR, 1), _change(columns_LCR, min(2, len(columns_LCR) - 1)))
    return bool((_change(columns_LCR, len(columns_LCR) - 1) > GROWTH_LIMIT * first_R).any())


def _change(columns_LCR: Tensor, layer: int) -> Tensor:
    """Root mean square change of the columns in a layer, (R,)."""
    return (columns_LCR[layer] - columns_LCR[layer - 1]).square().mean(dim=0).sqrt()


def _run(context: Context, attention_CN: Tensor, setting: Setting) -> Readout:
    if setting.landmarks:
        return solve_landmarks(context, attention_CN, setting.gates)
    if setting.num_layers == EQUILIBRIUM:
        return solve_equilibrium(context, attention_CN, setting.gates)
    return run_layers(context, attention_CN, setting.gates, setting.num_layers, setting.start_at_constant)


def _tensor_maker(device: str | torch.device, dtype: torch.dtype) -> Callable[[np.ndarray], Tensor]:
    return lambda array: torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=device)


def _context(
    prompt: Prompt, setting: Setting, rewards_NR: Tensor, log_weights_N: Tensor, ratios: np.ndarray
) -> Context:
    tensor = _tensor_maker(rewards_NR.device, rewards_NR.dtype)
    discounts_N = tensor(prompt.discounts) * (len(prompt) / (len(prompt) + setting.pseudo_terminations))
    next_ratios = np.append(ratios[1:], 1.0)
    return Context(
        rewards_NR=rewards_NR,
        discounts_N1=discounts_N.unsqueeze(-1),
        successors_N=torch.as_tensor(prompt.successors, device=rewards_NR.device),
        weights_N1=log_weights_N.exp().unsqueeze(-1),
        trace=Trace.of(discounts_N * setting.trace_decay * tensor(prompt.trace_links * next_ratios)),
    )


def _with_rewards(context: Context, rewards_NR: Tensor) -> Context:
    return replace(context, rewards_NR=rewards_NR)


def _column_attention(prompt: Prompt, setting: Setting, context: Context, keys: Keys) -> Tensor:
    columns_CD = np.concatenate([prompt.source_features, prompt.end_features])
    return _attention(columns_CD, prompt, setting, context.rewards_NR, keys)


def _attention(features_BD: np.ndarray, prompt: Prompt, setting: Setting, like: Tensor, keys: Keys) -> Tensor:
    """Attention over the keys, (B, N)."""
    destination_BD = _scaled(features_BD, prompt, setting, like)
    source_ND = _scaled(prompt.source_features[keys.rows], prompt, setting, like)
    if setting.kernel == "inner_product":
        return inner_product_attention(destination_BD, source_ND, keys.log_weights)
    log_sink = (
        torch.tensor(setting.sink, dtype=source_ND.dtype, device=source_ND.device).log() if setting.sink else None
    )
    return gaussian_attention(destination_BD, source_ND, keys.log_weights, log_sink)


def _keys(prompt: Prompt, setting: Setting, log_weights_N: Tensor) -> Keys:
    if not setting.landmarks:
        return Keys(slice(None), log_weights_N)
    kept = np.flatnonzero(np.isfinite(log_weights_N.cpu().numpy()))
    _, first = np.unique(prompt.source_features[kept], axis=0, return_index=True)
    distinct = kept[np.sort(first)]
    num_keys = min(setting.landmarks, len(distinct))
    rows = distinct[np.linspace(0, len(distinct) - 1, num_keys).round().astype(int)]
    return Keys(rows, torch.full_like(log_weights_N[:num_keys], math.log(len(prompt) / num_keys)))


def _scaled(features_BD: np.ndarray, prompt: Prompt, setting: Setting, like: Tensor) -> Tensor:
    width = setting.bandwidth
    if setting.kernel == "gaussian":
        width *= math.sqrt(prompt.effective_dimension / 4)
        features_BD = relevant_features(features_BD, prompt, setting.relevance)
    return _tensor_maker(like.device, like.dtype)(features_BD / width)
