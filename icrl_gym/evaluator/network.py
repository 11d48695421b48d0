"""The evaluator's form of the transformer: `compile_prompt` runs the network of a `Setting` on a prompt.

Because queries are never sources, a whole forward pass over the context can be compiled into one memory vector per
layer; a query then costs one row of attention, and any batch of queries equals one-by-one.

Shape legend: N sources, E end columns, C = N + E columns, K keys, Q queries, D features, R reward functions, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.blocks import columns_of
from icrl_gym.evaluator.equilibrium import at_free_level, solve_equilibrium, transposed_equilibrium
from icrl_gym.evaluator.kernel import Kernel, Kernels
from icrl_gym.evaluator.keys import evenly
from icrl_gym.evaluator.landmarks import BLOCK, LandmarkSystem, aggregated, transposed_aggregated
from icrl_gym.evaluator.recursion import Equations, Readout, Trace, run_layers, transposed_layers
from icrl_gym.evaluator.setting import Setting

GROWTH_LIMIT = 2.0  # the last layer's change may exceed the first ones' by this factor before the fallback
CHECKED_COLUMNS = 4096  # of a context, evenly spaced, at which a landmark equilibrium's values are checked
PROBE_FREQUENCY = 37.0  # radians per standard deviation: neighbouring sources get unrelated probe rewards


@dataclass(frozen=True, eq=False)
class CompiledPrompt:
    """A prompt run through the network under one setting, ready for queries.

    Attributes:
        prompt: the context that was run.
        setting: the setting that was used (the fallback's, where it took over).
        equations: the prompt's TD equations as tensors.
        kernel: attention of columns and queries over the keys.
        readout: constants and memories per layer.
        fell_back: whether the averager took over.
        system: the sums that a landmark equilibrium is solved from, else None; its last reward is the probe's.
        tried: the setting with landmarks that the averager took over from, else None.
    """

    prompt: Prompt
    setting: Setting
    equations: Equations
    kernel: Kernel
    readout: Readout
    fell_back: bool
    system: LandmarkSystem | None = None
    tried: Setting | None = None

    @property
    def attention_CK(self) -> Tensor:
        """(C, K) attention of all columns over the keys: the sources, or the landmarks."""
        return self.kernel.columns_CK

    def attend(self, features_QD: np.ndarray) -> Tensor:
        """Attention of queries over the keys, (Q, K)."""
        return self.kernel.attend(features_QD)

    def values(self, attention_QK: Tensor) -> Tensor:
        """Values of queries after each layer, (L, Q)."""
        return self.readout(attention_QK)[..., 0]

    @cached_property
    def at_columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Values of all columns after the last layer, and the attention that falls on the keys, both (C,) float64."""
        num_columns, readout = len(self.prompt) + len(self.prompt.end_features), self.readout
        parts = []
        for start in range(0, num_columns, BLOCK):
            attention_BK = self.kernel.attend_columns(np.arange(start, min(num_columns, start + BLOCK)))
            parts.append((self.values(attention_BK)[-1], attention_BK.sum(dim=1)))
        values_C, mass_C = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
        if readout.columns_LCR is not None:  # end columns of some settings are averagers
            values_C = readout.columns_LCR[-1, :, 0].double().cpu().numpy()
        return values_C, mass_C

    def solved_again(self) -> CompiledPrompt:
        """With what its sums say under its setting."""
        assert self.system is not None
        constant_1R, memory_KR = self.system.solve(self.setting.parameters)
        return replace(self, readout=landmark_readout(constant_1R[:, :-1], memory_KR[:, :-1]))

    @property
    def exceeds(self) -> bool:
        """Whether a landmark equilibrium's values of the probe exceed every value it can have, at some columns."""
        assert self.system is not None
        constant_1R, memory_KR = self.system.solve(self.setting.parameters)
        columns = evenly(np.arange(len(self.prompt) + len(self.prompt.end_features)), CHECKED_COLUMNS)
        values_BR = constant_1R + self.kernel.attend_columns(columns) @ memory_KR
        return _exceeds(values_BR[:, -1], self.prompt.gamma)

    @cached_property
    def level_shift(self) -> float:
        """How far the free level lies above an equilibrium's constant; 0 where it has none or is not determined."""
        return float(with_free_level(self, 1.0).readout.constants_LR[-1, 0] - self.readout.constants_LR[-1, 0])

    def attribution(self, attention_QK: Tensor, constants_Q: Tensor | None = None) -> Tensor:
        """The matrix W (Q, N) with values = W @ rewards, by the transposed recursion or one transposed solve.

        Whether to fall back is not decided again. Factors that were let go of are computed once more.

        Args:
            attention_QK: attention of the queries, or weighted sums of such rows.
            constants_Q: the sums' weights; default 1 each.
        """
        equations, kernel, setting = self.equations, self.kernel, self.setting
        rows_KQ = attention_QK.mT
        constants_1Q = torch.ones_like(rows_KQ[:1]) if constants_Q is None else constants_Q[None]
        if self.system is not None:
            return self.system.transposed(equations, kernel, setting.parameters, rows_KQ, constants_1Q).mT
        if setting.landmarks:
            return transposed_aggregated(equations, kernel, rows_KQ, constants_1Q).mT
        if setting.at_equilibrium:
            factors = self.readout.factors
            return transposed_equilibrium(
                equations, kernel.columns_CK, setting.parameters, rows_KQ, constants_1Q, factors
            ).mT
        depth = int(setting.num_layers), setting.start_at_constant
        return transposed_layers(equations, columns_of(kernel), setting.parameters, *depth, rows_KQ, constants_1Q).mT

    def under(self, rewards_NR: Tensor) -> Readout:
        """What queries need under R other reward functions, at the last layer; whether to fall back stays decided."""
        equations = replace(self.equations, rewards_NR=rewards_NR)
        if self.setting.landmarks:
            summed = self.system is not None
            solve = LandmarkSystem.of(equations, self.kernel).solve if summed else None
            found = aggregated(equations, self.kernel) if solve is None else solve(self.setting.parameters)
            return landmark_readout(*found)
        solved = _run(equations, self.kernel, self.setting)
        return Readout(solved.constants_LR[-1:], solved.memories_LNR[-1:])

    def without_matrices(self) -> CompiledPrompt:
        """The same for queries, without what solving it took: values of the columns, and factors."""
        return replace(self, readout=Readout(self.readout.constants_LR, self.readout.memories_LNR))


class Compiler:
    """Runs one prompt under any number of settings; what they have in common is computed once.

    Args:
        prompt: the context.
        log_weights: (N,) log weights of the sources (bootstrap weights, say), default the prompt's own; -inf drops a
            source.
        importance_ratios: (N,) pi / mu of the logged actions, default the prompt's own; they weigh the sources and
            enter the traces.
        device, dtype: torch device and dtype; landmarks are always summed and solved in float64.

    Raises:
        ValueError: all sources are dropped, or weights or ratios are not N numbers of the right kind.
    """

    def __init__(
        self,
        prompt: Prompt,
        *,
        log_weights: np.ndarray | None = None,
        importance_ratios: np.ndarray | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        given = prompt.importance_ratios if importance_ratios is None else importance_ratios
        self._prompt, self._device, self._dtype = prompt, device, dtype
        self._ratios_N = check_ratios(given, len(prompt))
        log_weights = prompt.log_weights if log_weights is None else log_weights
        self._log_weights_N = check_log_weights(log_weights, self._ratios_N)
        self._kernels = Kernels(prompt, self._log_weights_N, device)
        self._known_equations: dict[tuple[object, ...], Equations] = {}

    def compile(self, setting: Setting, fall_back: bool = True, rewards: np.ndarray | None = None) -> CompiledPrompt:
        """Run the context through the network of a setting.

        The averager takes over where the recursion grows. That is decided once per prompt: the change per layer has to
        grow for the given rewards and, where it does, for a probe reward function of the features alone as well; so
        wherever the recursion is stable values are linear in the rewards.

        Args:
            setting: the network.
            fall_back: False runs the setting as it is, whatever happens.
            rewards: (N, R) other reward functions on the same context; default the prompt's own as (N, 1).
        """
        rewards = self._prompt.rewards[:, None] if rewards is None else rewards
        if setting.landmarks:
            return self._by_landmarks(setting, rewards, fall_back)
        dtype = self._dtype
        equations, kernel = self.equations(setting, rewards, dtype), self._kernels.of(setting, dtype)
        probe_N1 = self._probe(dtype)
        if setting.at_equilibrium:  # one more right-hand side costs nothing
            with_probe_NR = torch.cat([equations.rewards_NR, probe_N1], dim=-1)
            both = _run(replace(equations, rewards_NR=with_probe_NR), kernel, setting)
            assert both.columns_LCR is not None
            fell_back = fall_back and _exceeds(both.columns_LCR[-1, :, -1], self._prompt.gamma)
            readout = _without_probe(both)
        else:
            readout = _run(equations, kernel, setting)
            fell_back = fall_back and _grows(readout)
            fell_back = fell_back and _grows(_run(replace(equations, rewards_NR=probe_N1), kernel, setting))
        if fell_back:
            setting = setting.fallback()
            kernel = self._kernels.of(setting, dtype)
            readout = _run(equations, kernel, setting)
        return CompiledPrompt(self._prompt, setting, equations, kernel, readout, fell_back)

    def _by_landmarks(self, setting: Setting, rewards: np.ndarray, fall_back: bool) -> CompiledPrompt:
        """The context under a setting with landmarks, in float64, from sums over blocks."""
        dtype = torch.float64
        equations, kernel = self.equations(setting, rewards, dtype), self._kernels.of(setting, dtype)
        if setting.averaging:
            return CompiledPrompt(
                self._prompt, setting, equations, kernel, landmark_readout(*aggregated(equations, kernel)), False
            )
        solved = CompiledPrompt(
            self._prompt, setting, equations, kernel, Readout(torch.empty(0), torch.empty(0)), False,
            LandmarkSystem.of(self.with_probe(equations), kernel),
        ).solved_again()  # fmt: skip
        if fall_back and solved.exceeds:
            return replace(self._by_landmarks(setting.fallback(), rewards, False), fell_back=True, tried=setting)
        return solved

    def with_probe(self, equations: Equations) -> Equations:
        """The equations with `probe_rewards` as one more reward function."""
        probe_N1 = self._probe(equations.rewards_NR.dtype)
        return replace(equations, rewards_NR=torch.cat([equations.rewards_NR, probe_N1], dim=-1))

    def _probe(self, dtype: torch.dtype) -> Tensor:
        """`probe_rewards`, (N, 1)."""
        return self._tensor(probe_rewards(self._prompt.source_features), dtype)[:, None]

    def release(self) -> None:
        """Let go of the attention matrices of the context; what was compiled computes them again when asked."""
        self._kernels.release()

    def equations(self, setting: Setting, rewards: np.ndarray, dtype: torch.dtype) -> Equations:
        """The TD equations under a setting; settings of one trace and hazard share all but the rewards."""
        alike = setting.pseudo_terminations, setting.trace_decay, dtype
        if alike not in self._known_equations:
            self._known_equations[alike] = self._new_equations(setting, dtype)
        return replace(self._known_equations[alike], rewards_NR=self._tensor(rewards, dtype))

    def _new_equations(self, setting: Setting, dtype: torch.dtype) -> Equations:
        parts = (self._prompt.rewards[None, :, None], self._log_weights_N[None], self._ratios_N[None])
        return td_equations(setting, [self._prompt], *parts, dtype, self._device).of_prompt(0)

    def _tensor(self, array: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype, device=self._device)


def td_equations(
    setting: Setting,
    prompts: Sequence[Prompt],
    rewards_BNR: np.ndarray,
    log_weights_BN: np.ndarray,
    ratios_BN: np.ndarray,
    dtype: torch.dtype,
    device: str | torch.device,
) -> Equations:
    """The TD equations of B prompts of N transitions each, under one setting, with a leading batch axis.

    Args:
        setting: says how traces decay and how discounts are shortened.
        prompts: the contexts.
        rewards_BNR: their rewards.
        log_weights_BN: log weights of the sources.
        ratios_BN: importance ratios, which enter the traces.
        dtype, device: of the tensors.
    """

    def tensor(arrays: Any) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(arrays), dtype=dtype, device=device)

    shorter = len(prompts[0]) / (len(prompts[0]) + setting.pseudo_terminations)
    discounts_BN = tensor([prompt.discounts for prompt in prompts]) * shorter
    following_BN = np.concatenate([ratios_BN[:, 1:], np.ones_like(ratios_BN[:, :1])], axis=1)
    links_BN = tensor(np.array([prompt.trace_links for prompt in prompts]) * following_BN)
    return Equations(
        rewards_NR=tensor(rewards_BNR),
        discounts_N1=discounts_BN.unsqueeze(-1),
        successors_N=torch.as_tensor(np.array([prompt.successors for prompt in prompts]), device=device),
        weights_N1=tensor(log_weights_BN).exp().unsqueeze(-1),
        trace=Trace.of(discounts_BN * setting.trace_decay * links_BN),
    )


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
    """Run a context under one setting; arguments and errors are those of `Compiler` and its `compile`."""
    compiler = Compiler(
        prompt, log_weights=log_weights, importance_ratios=importance_ratios, device=device, dtype=dtype
    )
    return compiler.compile(setting, fall_back, rewards)


def with_free_level(compiled: CompiledPrompt, free_level: float) -> CompiledPrompt:
    """The same equilibrium at another free level, from the factors that are there; without factors, as it is.

    Whether to fall back is not decided again.

    Args:
        compiled: a compiled prompt whose setting has the free level 0.
        free_level: the level wanted, in [-1, 1].
    """
    if not free_level:
        return compiled
    if compiled.tried is not None:
        return replace(compiled, tried=replace(compiled.tried, free_level=free_level))
    if compiled.system is None and compiled.readout.factors is None:
        return compiled
    setting = replace(compiled.setting, free_level=free_level)
    if compiled.system is not None:
        return replace(compiled, setting=setting).solved_again()
    moved = at_free_level(compiled.equations, compiled.attention_CK, setting.parameters, compiled.readout)
    return replace(compiled, setting=setting, readout=moved)


def landmark_readout(constant_1R: Tensor, memory_KR: Tensor) -> Readout:
    """The read-out of an equilibrium over landmarks, as one layer that starts at the constant."""
    return Readout(constant_1R, memory_KR[None])


def check_ratios(ratios: np.ndarray | None, num_sources: int) -> np.ndarray:
    """Importance ratios (N,), default 1, or ValueError."""
    if ratios is None:
        return np.ones(num_sources)
    ratios = np.asarray(ratios, dtype=np.float64)
    if ratios.shape != (num_sources,) or not (np.isfinite(ratios) & (ratios >= 0)).all():
        raise ValueError(f"importance_ratios must be {num_sources} finite numbers >= 0, got shape {ratios.shape}")
    return ratios


def check_log_weights(log_weights: np.ndarray | None, ratios: np.ndarray) -> np.ndarray:
    """Log weights (N,) of the sources, default 0, with the ratios, or ValueError."""
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


def _exceeds(values_C: Tensor, gamma: float) -> bool:
    """Whether values of an equilibrium, for rewards within [-1, 1], exceed every value such rewards can have."""
    return not bool(torch.isfinite(values_C).all()) or bool(values_C.abs().max() > 1.0 / (1.0 - gamma))


def _grows(readout: Readout) -> bool:
    assert readout.columns_LCR is not None
    return grows(readout.columns_LCR)


def grows(columns_LCR: Tensor) -> bool:
    """Whether the change per layer grows from the first layers to the last, in any channel."""
    if not bool(torch.isfinite(columns_LCR).all()):
        return True
    first_R = torch.maximum(_change(columns_LCR, 1), _change(columns_LCR, min(2, len(columns_LCR) - 1)))
    return bool((_change(columns_LCR, len(columns_LCR) - 1) > GROWTH_LIMIT * first_R).any())


def _change(columns_LCR: Tensor, layer: int) -> Tensor:
    """Root mean square change of the columns in a layer, (R,)."""
    return (columns_LCR[layer] - columns_LCR[layer - 1]).square().mean(dim=0).sqrt()


def _run(equations: Equations, kernel: Kernel, setting: Setting) -> Readout:
    if setting.at_equilibrium:
        return solve_equilibrium(equations, kernel.columns_CK, setting.parameters)
    depth = int(setting.num_layers), setting.start_at_constant
    return run_layers(equations, columns_of(kernel), setting.parameters, *depth)
