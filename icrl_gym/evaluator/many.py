"""`evaluate_many`: values of many policies, each from its own stretch of experience, in batches.

Contexts of one length share the tensors of one solve or one run of the layers. What remains per context is its LU
factorisation, and a little bookkeeping.

Shape legend: B prompts, Q queries of each, N sources, E most end columns, C = N + E columns, D features, R reward
functions, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.features import FeatureMap
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.answer import estimates_of
from icrl_gym.evaluator.blocks import is_stored
from icrl_gym.evaluator.compiled import CompiledMixture, Member, Reading
from icrl_gym.evaluator.equilibrium import solve_equilibrium
from icrl_gym.evaluator.error_bars import LARGEST_CONTEXT, leave_one_out_errors, sampling_variance, unseen_termination
from icrl_gym.evaluator.estimator import InContextEvaluator
from icrl_gym.evaluator.kernel import Kernel, Kernels, gaussian_attention, inner_product_attention
from icrl_gym.evaluator.mixture import Construction
from icrl_gym.evaluator.network import (
    CompiledPrompt,
    check_log_weights,
    check_ratios,
    grows,
    probe_rewards,
    td_equations,
)
from icrl_gym.evaluator.recursion import Columns, Equations, Readout, run_layers
from icrl_gym.evaluator.setting import Setting
from icrl_gym.observations import Observations, as_batch, take
from icrl_gym.values import ValueEstimates

BATCH_BYTES = 2**22  # of the attention of the prompts that are solved together


def evaluate_many(
    trajectories: Sequence[Trajectory],
    gamma: float,
    observations: Observations | list[Observations] | None = None,
    *,
    evaluator: InContextEvaluator | str | Path = "constructed",
    standard_errors: bool = True,
    **options: Any,
) -> list[ValueEstimates]:
    """Values of many policies, each from a trajectory of its own; equal to fits one by one.

    The construction runs in batches of trajectories of equal length. Pretrained mixtures, whose heads differ from
    context to context, run one by one.

    Args:
        trajectories: one for each policy.
        gamma: discount in [0, 1).
        observations: the queries: one batch for all, or a list with a batch for each trajectory; default each
            trajectory's first state.
        evaluator: an evaluator, whose own context is left alone, or a name that `from_pretrained` takes.
        standard_errors: False leaves them out (``stderr`` is None), which saves a third of the time in batches.
        **options: of `from_pretrained`, where a name is given.

    Raises:
        TypeError: not trajectories, or options beside an evaluator.
        ValueError: gamma out of range, queries that do not fit, or a list of another length.
    """
    trajectories = list(trajectories)
    for index, trajectory in enumerate(trajectories):
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"trajectories must hold Trajectory only, got {type(trajectory).__name__} at {index}")
    queries = _queries(trajectories, observations)
    reader = _reader(evaluator, options)
    if not _runs_in_batches(reader):
        return [_alone(reader, *one, gamma, standard_errors) for one in zip(trajectories, queries, strict=True)]
    found: list[ValueEstimates | None] = [None] * len(trajectories)
    tasks = [_Task.of(reader, *one, gamma) for one in zip(trajectories, queries, strict=True)]
    for indices in _batches(tasks):
        for index, estimates in zip(
            indices, _together(reader, [tasks[i] for i in indices], standard_errors), strict=True
        ):
            found[index] = estimates or _alone(reader, trajectories[index], queries[index], gamma, standard_errors)
    return [estimates for estimates in found if estimates is not None]


@dataclass(frozen=True, eq=False)
class _Task:
    """One trajectory, its prompt and kernel, and its queries."""

    trajectory: Trajectory
    prompt: Prompt
    kernel: Kernel
    ratios_N: np.ndarray
    log_weights_N: np.ndarray
    observations: Observations
    features_QD: np.ndarray

    @classmethod
    def of(cls, reader: InContextEvaluator, trajectory: Trajectory, observations: Observations, gamma: float) -> _Task:
        features = FeatureMap(trajectory.observation_space, reader.features).fit(trajectory.observations)
        prompt = Prompt.from_trajectory(trajectory, gamma, features)
        ratios_N = check_ratios(prompt.importance_ratios, len(prompt))
        log_weights_N = check_log_weights(None, ratios_N)
        kernel = Kernels(prompt, log_weights_N, reader.device).of(reader.model.heads[0], reader.dtype)
        return cls(trajectory, prompt, kernel, ratios_N, log_weights_N, observations, prompt.queries(observations))

    @property
    def alike(self) -> tuple[int, ...]:
        """What tasks of one batch have in common."""
        return len(self.prompt), *self.features_QD.shape

    def scaled(self, features_BD: np.ndarray) -> np.ndarray:
        """Features divided by the kernel's width."""
        setting = self.kernel.setting
        if setting.kernel == "gaussian":
            return features_BD * self.kernel.relevance_D / self.prompt.kernel_width(setting.bandwidth)
        return features_BD / setting.bandwidth


def _queries(trajectories: list[Trajectory], observations: Any) -> list[Observations]:
    """One checked batch for each trajectory."""
    if isinstance(observations, list):
        if len(observations) != len(trajectories):
            raise ValueError(
                f"observations must be a list with one batch for each of the {len(trajectories)} trajectories, or one "
                f"batch for all that is no list, got a list of {len(observations)}"
            )
        batches = observations
    elif observations is None:
        batches = [take(trajectory.observations, np.arange(1)) for trajectory in trajectories]
    else:
        batches = [observations] * len(trajectories)
    return [
        as_batch(batch, trajectory.observation_space, "observations")
        for batch, trajectory in zip(batches, trajectories, strict=True)
    ]


def _reader(evaluator: InContextEvaluator | str | Path, options: dict[str, Any]) -> InContextEvaluator:
    if not isinstance(evaluator, InContextEvaluator):
        return InContextEvaluator.from_pretrained(evaluator, **options)
    if options:
        raise TypeError(f"options go with the name of an evaluator, got an evaluator and {sorted(options)}")
    return evaluator


def _runs_in_batches(reader: InContextEvaluator) -> bool:
    setting = reader.model.heads[0]
    solvable = setting.parameters.shrinks or not setting.at_equilibrium
    return isinstance(reader.model, Construction) and not reader.imagination and not setting.landmarks and solvable


def _alone(
    reader: InContextEvaluator,
    trajectory: Trajectory,
    observations: Observations,
    gamma: float,
    standard_errors: bool,
) -> ValueEstimates:
    estimates = copy(reader).fit(trajectory, gamma).predict(observations)
    return estimates if standard_errors else replace(estimates, stderr=None)


def _batches(tasks: list[_Task]) -> Iterator[list[int]]:
    """Indices of tasks that run together: alike, and as many as fit."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, task in enumerate(tasks):
        groups.setdefault(task.alike, []).append(index)
    for (num_sources, *_), indices in groups.items():
        size = tasks[indices[0]].kernel.log_weights_K.itemsize * num_sources**2
        step = max(1, BATCH_BYTES // size)
        for start in range(0, len(indices), step):
            yield indices[start : start + step]


def _together(reader: InContextEvaluator, tasks: list[_Task], standard_errors: bool) -> list[ValueEstimates | None]:
    """Estimates of one batch; None where the averager may have to take over, or attention is not held."""
    setting = tasks[0].kernel.setting
    if not is_stored(tasks[0].kernel):
        return [None] * len(tasks)
    batch = _Batch.of(tasks, setting, reader.dtype, reader.device)
    stays_B = batch.stays(tasks)
    by_layer_BLQ = batch.readout(batch.queries_BQN)[..., 0].double().cpu().numpy()
    stderr_BQ = batch.standard_errors(tasks) if standard_errors else None
    found: list[ValueEstimates | None] = []
    for index, task in enumerate(tasks):
        if not stays_B[index]:
            found.append(None)
            continue
        support_Q = task.kernel.support(task.features_QD, batch.queries_BQN[index])
        reading = Reading(by_layer_BLQ[index], None if stderr_BQ is None else stderr_BQ[index], support_Q)
        mixture = CompiledMixture(task.prompt, (Member(1.0, batch.compiled(task, index)),))
        found.append(estimates_of(mixture, task.trajectory, task.observations, task.features_QD, reading))
    return found


@dataclass(frozen=True, eq=False)
class _Batch:
    """B prompts under one setting. The equilibrium's last reward function is a probe."""

    setting: Setting
    equations: Equations
    readout: Readout
    queries_BQN: Tensor

    @classmethod
    def of(cls, tasks: list[_Task], setting: Setting, dtype: torch.dtype, device: torch.device) -> _Batch:
        rewards_BNR = np.stack([task.prompt.rewards for task in tasks])[..., None]
        if setting.at_equilibrium:
            probe_BN = np.stack([probe_rewards(task.prompt.source_features) for task in tasks])
            rewards_BNR = np.concatenate([rewards_BNR, probe_BN[..., None]], axis=-1)
        log_weights_BN = np.stack([task.log_weights_N for task in tasks])
        ratios_BN, prompts = np.stack([task.ratios_N for task in tasks]), [task.prompt for task in tasks]
        equations = td_equations(setting, prompts, rewards_BNR, log_weights_BN, ratios_BN, dtype, device)
        most_ends = max(len(task.prompt.end_features) for task in tasks)
        columns = [task.scaled(_columns(task.prompt, most_ends)) for task in tasks]
        columns_BCD = torch.as_tensor(np.stack(columns), dtype=dtype, device=device)
        queries = [task.scaled(task.features_QD) for task in tasks]
        queries_BQD = torch.as_tensor(np.stack(queries), dtype=dtype, device=device)
        attention_BCN = _attend(setting, columns_BCD, columns_BCD, equations)
        queries_BQN = _attend(setting, queries_BQD, columns_BCD, equations)
        if setting.at_equilibrium:
            readout = solve_equilibrium(equations, attention_BCN, setting.parameters)
        else:
            depth = int(setting.num_layers), setting.start_at_constant
            readout = run_layers(equations, Columns.of(attention_BCN), setting.parameters, *depth)
        return cls(setting, equations, readout, queries_BQN)

    def stays(self, tasks: list[_Task]) -> list[bool]:
        """Whether the setting is certain to hold for each prompt, without the averager."""
        columns_BLCR = self.readout.columns_LCR
        assert columns_BLCR is not None
        if not self.setting.at_equilibrium:
            counts = [len(task.prompt) + len(task.prompt.end_features) for task in tasks]
            return [not grows(columns_BLCR[index, :, :count]) for index, count in enumerate(counts)]
        last_BCR = columns_BLCR[:, -1]
        finite_B = torch.isfinite(last_BCR).flatten(1).all(dim=1)
        limit_B = torch.tensor([1.0 / (1.0 - task.prompt.gamma) for task in tasks]).to(last_BCR)
        return (finite_B & (last_BCR[..., -1].abs().amax(dim=1) <= limit_B)).tolist()

    def standard_errors(self, tasks: list[_Task]) -> np.ndarray | None:
        """Standard errors (B, Q); None at finite depth and in long contexts."""
        factors, num_sources = self.readout.factors, self.queries_BQN.shape[-1]
        if factors is None or num_sources > LARGEST_CONTEXT:
            return None
        innovations_BN1 = leave_one_out_errors(self.equations, self.readout)[..., :1]
        variance_BQ = sampling_variance(
            self.equations, self.setting.parameters, factors, innovations_BN1, self.queries_BQN
        )
        unseen_B1 = np.array([[unseen_termination(self.compiled(task, b))] for b, task in enumerate(tasks)])
        return np.sqrt(variance_BQ.double().cpu().numpy() + np.square(unseen_B1))

    def compiled(self, task: _Task, index: int) -> CompiledPrompt:
        """One prompt, for queries."""
        equations = self.equations.of_prompt(index)
        equations = replace(equations, rewards_NR=equations.rewards_NR[:, :1])
        readout = Readout(self.readout.constants_LR[index, :, :1], self.readout.memories_LNR[index, ..., :1])
        return CompiledPrompt(task.prompt, self.setting, equations, task.kernel, readout, False)


def _columns(prompt: Prompt, most_ends: int) -> np.ndarray:
    """Features of the columns, the first source's in place of the ends that are missing."""
    missing = np.repeat(prompt.source_features[:1], most_ends - len(prompt.end_features), axis=0)
    return np.concatenate([prompt.source_features, prompt.end_features, missing])


def _attend(setting: Setting, states_BSD: Tensor, columns_BCD: Tensor, equations: Equations) -> Tensor:
    """Attention (B, S, N) of scaled states over the sources."""
    log_weights_BN = equations.weights_N1[..., 0].log()
    sources_BND = columns_BCD[:, : log_weights_BN.shape[1]]
    if setting.kernel == "inner_product":
        return inner_product_attention(states_BSD, sources_BND, log_weights_BN)
    log_sink_B = torch.full_like(log_weights_BN[:, 0], setting.sink).log() if setting.sink else None
    return gaussian_attention(states_BSD, sources_BND, log_weights_BN, log_sink_B)
