"""`InContextEvaluator`: a policy's values from one stretch of its experience, without a gradient step.

`fit` compiles the context into the network's memory, `predict` costs one row of attention per query.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from gymnasium import spaces

from icrl_gym.context.features import FeatureFunction, FeatureMap
from icrl_gym.context.pairs import as_pairs, known_successors, state_action_prompt, state_action_trajectory
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.checkpoint import available_checkpoints, bundled_checkpoint, load_checkpoint
from icrl_gym.evaluator.diagnostics import Diagnostics
from icrl_gym.evaluator.error_bars import SamplingError
from icrl_gym.evaluator.mixture import CompiledMixture, Generalist
from icrl_gym.evaluator.network import EQUILIBRIUM, THEOREM_1, CompiledPrompt, Setting, compile_prompt
from icrl_gym.observations import Observations, as_batch, named_leaves
from icrl_gym.values import ValueEstimates

# Defaults when a depth is given by hand: softmax TD(.95) wants a narrower kernel, and no ridge.
FINITE_DEPTH = Setting(num_layers=8, bandwidth=0.9, sink=0.0, forgetting=0.0, trace_decay=0.95)
MODES = ("auto", "exact")
QUERY_BLOCK = 4096  # rows of attention held at once
THIN_SUPPORT = 0.5  # sources; queries below it are named in the warnings


@dataclass(frozen=True)
class Options:
    """Keywords of `InContextEvaluator`; None takes the default of the network that the other keywords select."""

    num_layers: int | Literal["equilibrium"] | None = None
    bandwidth: float | None = None
    trace_decay: float | None = None
    sink: float | None = None
    forgetting: float | None = None
    step_size: float | None = None
    averaging: float | None = None

    def setting(self, plain: bool) -> Setting:
        """The network these options select: Theorem 1's if plain, else by depth."""
        chosen = {name: value for name, value in vars(self).items() if value is not None}
        if plain:
            base = THEOREM_1
        else:
            base = Setting() if chosen.get("num_layers", EQUILIBRIUM) == EQUILIBRIUM else FINITE_DEPTH
        return replace(base, **chosen)

    def on(self, head: Setting) -> Setting:
        """These options in place of a head's own; at finite depth a head keeps its relevance and its share of width."""
        chosen = {name: value for name, value in vars(self).items() if value is not None}
        if chosen.get("num_layers", EQUILIBRIUM) != EQUILIBRIUM:
            width = FINITE_DEPTH.bandwidth * head.bandwidth / Setting().bandwidth
            head = replace(FINITE_DEPTH, bandwidth=width, relevance=head.relevance, averaging=head.averaging)
        if not replace(head, landmarks=0, **chosen).allows_landmarks:
            head = replace(head, landmarks=0)
        return replace(head, **chosen)


class InContextEvaluator:
    """Evaluate a policy in context.

    Use `from_pretrained`; then ``fit(trajectory, gamma).predict(observations)``.

    Args:
        num_layers: depth, or "equilibrium" (default): the limit of infinitely many tied layers, solved directly.
        bandwidth: Gaussian width in standard deviations of the context, times sqrt(D / 4).
        trace_decay: lambda in [0, 1].
        sink: weight of the attention sink in sources; 0 for none.
        forgetting: ridge towards the prompt's constant; 0 for none.
        step_size: alpha.
        averaging: beta in [0, 1]; 0 is softmax TD, 1 kernel averaging.
        plain: True for Theorem 1's network as it stands in the paper (inner-product kernel, zero start, no extensions).
        features: own feature function ``(B,) + shape -> (B, D)`` instead of the space's default.
        mode: "auto" or "exact".
        device: torch device.
        dtype: torch.float64 (default) or torch.float32.
        model: a pretrained mixture, or None for the construction alone. Options given by hand hold in all its heads.

    Attributes:
        setting: the network as selected; a mixture's first head.
        trajectory_, prompt_, compiled_: what `fit` made; of a mixture, `compiled_` is the context under its first head.

    Raises:
        ValueError, TypeError: an option is out of range.
    """

    def __init__(
        self,
        *,
        num_layers: int | Literal["equilibrium"] | None = None,
        bandwidth: float | None = None,
        trace_decay: float | None = None,
        sink: float | None = None,
        forgetting: float | None = None,
        step_size: float | None = None,
        averaging: float | None = None,
        plain: bool = False,
        features: FeatureFunction | None = None,
        mode: str = "auto",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
        model: Generalist | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        options = Options(num_layers, bandwidth, trace_decay, sink, forgetting, step_size, averaging)
        if model is not None and plain:
            raise ValueError("plain=True is Theorem 1's network, which is not pretrained: use the name 'constructed'")
        self.model = None if model is None else replace(model, heads=tuple(map(options.on, model.heads)))
        self.setting = options.setting(plain) if self.model is None else self.model.heads[0]
        self.features = features
        self.mode = mode
        self.device = torch.device(device)
        self.dtype = dtype

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "generalist", device: str | torch.device = "cpu", **options: Any
    ) -> Self:
        """The evaluator of this name. Nothing is downloaded.

        Args:
            name: "generalist": the mixture pretrained on synthetic systems; "constructed": Theorem 1's network with the
                extensions of theory section 7, nothing in it trained; or the path of your own checkpoint (.safetensors,
                its card beside it).
            device: torch device.
            **options: see the class; None is the checkpoint's own, chosen from the prompt where it adapts.

        Raises:
            ValueError: no such name, or a checkpoint that is damaged or of another version, with the reason.
        """
        if name == CONSTRUCTED:
            return cls(device=device, **options)
        path = Path(name)
        if path.suffix != ".safetensors":
            known = [CONSTRUCTED, *available_checkpoints()]
            if name not in known:
                raise ValueError(f"name must be one of {known} or a path that ends in .safetensors, got {str(name)!r}")
            path = bundled_checkpoint(str(name))
        return cls(device=device, model=load_checkpoint(path)[0], **options)

    def fit(self, trajectory: Trajectory, gamma: float) -> Self:
        """Take a context. No gradient step is made.

        Args:
            trajectory: logged transitions of the policy.
            gamma: discount in [0, 1).

        Raises:
            TypeError: not a Trajectory, or observations without features.
            ValueError: gamma out of range.
        """
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"trajectory must be a Trajectory, got {type(trajectory).__name__}")
        feature_map = FeatureMap(trajectory.observation_space, self.features).fit(trajectory.observations)
        return self._compile(trajectory, Prompt.from_trajectory(trajectory, gamma, feature_map))

    def update(self, trajectory: Trajectory, refit: bool = False) -> Self:
        """Append transitions to the context; feature statistics stay frozen unless ``refit``.

        Raises:
            RuntimeError: called before `fit`.
            ValueError: the log is of another environment, policy or observation space.
        """
        self._check_fitted()
        joined, gamma = self.trajectory_.append(trajectory), self.prompt_.gamma
        if refit:
            return self.fit(joined, gamma)
        return self._compile(joined, Prompt.from_trajectory(joined, gamma, self.prompt_.feature_map))

    def predict(self, observations: Observations) -> ValueEstimates:
        """Values of raw observations (Q,) + shape, as `ValueEstimates` with standard errors, layers and diagnostics.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: the observations do not fit the observation space.
        """
        self._check_fitted()
        compiled, space = self.compiled_, self.trajectory_.observation_space
        evaluated = self._mixture or compiled
        observations = as_batch(observations, space, "observations")
        features_QD = self.prompt_.queries(observations)
        blocks = [features_QD[i : i + QUERY_BLOCK] for i in range(0, max(1, len(features_QD)), QUERY_BLOCK)]
        by_layer, stderr, support = [], [], []
        for block in blocks:
            attention_QN = compiled.attend(block)
            support.append(_support(compiled, block, attention_QN))
            if self._mixture is not None:
                values_LQ, stderr_Q = self._mixture.evaluate(block)
                by_layer.append(values_LQ)
                stderr.append(stderr_Q)
                continue
            by_layer.append(compiled.values(attention_QN).double().cpu().numpy())
            if self._sampling_error is not None:
                stderr.append(self._sampling_error(attention_QN))
        values_LQ = np.concatenate(by_layer, axis=1)
        support_Q = np.concatenate(support)
        notes = self.prompt_.feature_map.notes
        warnings = (*self._context_warnings, *notes, *_query_warnings(self, observations, values_LQ[-1], support_Q))
        return ValueEstimates(
            values=values_LQ[-1],
            observations=observations,
            estimand=self.prompt_.estimand,
            stderr=np.concatenate(stderr) if stderr else None,
            by_layer=values_LQ,
            diagnostics=Diagnostics(
                compiled.setting, "exact", evaluated.fell_back, support_Q, warnings, compiled, self._mixture
            ),
            bounds=_possible_values(self.prompt_),
            attribute=lambda: self._attribution(evaluated, features_QD),
        )

    def predict_q(self, observations: Observations, actions: Any) -> ValueEstimates:
        """Action values Q^pi of the logged policy, from the same context as columns of state-action pairs.

        The transition in which a stretch ends without terminating is not used: its next action is not known. The
        estimates' observations are the pairs, and their estimand is that of the process of pairs.

        Args:
            observations: (Q,) + shape.
            actions: (Q,) + action shape, one for each observation.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: observations or actions do not fit the context's, their numbers differ, or the
                context holds no transition whose next action is known.
        """
        self._check_fitted()
        if self._of_pairs is None:
            pairs = state_action_trajectory(self.trajectory_)
            prompt = state_action_prompt(pairs, self.prompt_.gamma, self.prompt_.feature_map)
            self._of_pairs = copy(self)._compile(pairs, prompt)
        of_pairs = self._of_pairs
        estimates = of_pairs.predict(as_pairs(observations, actions, of_pairs.trajectory_.observation_space))
        return replace(estimates, attribute=lambda: self._on_all_rewards(estimates.attribution()))

    def _on_all_rewards(self, attribution_QK: np.ndarray) -> np.ndarray:
        """Columns for every reward of the context, zero where `predict_q` does not use it."""
        attribution_QN = np.zeros((len(attribution_QK), len(self.trajectory_)))
        attribution_QN[:, known_successors(self.trajectory_)] = attribution_QK
        return attribution_QN

    def attention(self, observations: Observations) -> np.ndarray:
        """Attention of queries over the context's sources, (Q, N); rows sum to 1 less the sink's share."""
        self._check_fitted()
        return self.compiled_.attend(self.prompt_.queries(observations)).double().cpu().numpy()

    def _attribution(self, compiled: CompiledPrompt | CompiledMixture, features_QD: np.ndarray) -> np.ndarray:
        if isinstance(compiled, CompiledMixture):
            return compiled.attribution(features_QD)
        return compiled.attribution(compiled.attend(features_QD)).double().cpu().numpy()

    def _compile(self, trajectory: Trajectory, prompt: Prompt) -> Self:
        self.trajectory_, self.prompt_ = trajectory, prompt
        self._of_pairs: Self | None = None
        self._mixture: CompiledMixture | None = None
        self._sampling_error: SamplingError | None = None
        if self.model is not None:
            self._mixture = self.model.compile(prompt, self.device, self.dtype)
            self.compiled_, self._context_warnings = self._mixture.first, self._mixture.warnings
            return self
        self.compiled_ = compile_prompt(prompt, self.setting, device=self.device, dtype=self.dtype)
        self._sampling_error = SamplingError.of(self.compiled_)
        growth = "the recursion grows on this context: the safe averager took over"
        self._context_warnings = (growth,) if self.compiled_.fell_back else ()
        return self

    def _check_fitted(self) -> None:
        if not hasattr(self, "compiled_"):
            raise RuntimeError("this evaluator has no context yet: call fit(trajectory, gamma) first")


CONSTRUCTED = "constructed"


def _support(compiled: CompiledPrompt, features_QD: np.ndarray, attention_QN: torch.Tensor) -> np.ndarray:
    setting = compiled.setting
    if setting.kernel == "inner_product":
        return (1.0 / attention_QN.square().sum(dim=1)).double().cpu().numpy()
    if setting.sink > 0:
        mass_Q = attention_QN.sum(dim=1).clamp(max=1.0 - 1e-12)
        return (setting.sink * mass_Q / (1.0 - mass_Q)).double().cpu().numpy()
    width = setting.bandwidth * np.sqrt(compiled.prompt.effective_dimension / 4)
    source_ND = torch.as_tensor(compiled.prompt.source_features / width)
    distance_QN = torch.cdist(torch.as_tensor(features_QD / width), source_ND)
    return torch.exp(-distance_QN.square() / 2).sum(dim=1).numpy()


def _query_warnings(
    evaluator: InContextEvaluator, observations: Observations, values: np.ndarray, support: np.ndarray
) -> list[str]:
    warnings = []
    thin = int((support < THIN_SUPPORT).sum())
    if thin:
        warnings.append(
            f"{thin} of {len(support)} queries lie off the context's support: expect the context's constant"
        )
    unseen = _unseen_ids(evaluator.trajectory_, observations)
    if unseen:
        warnings.append(f"{unseen} of {len(support)} queries hold an id that the context never visited")
    low, high = _possible_values(evaluator.prompt_)
    slack = 1e-9 * (high - low)
    outside = int(((values > high + slack) | (values < low - slack)).sum())
    if outside:
        warnings.append(f"{outside} of {len(support)} values lie outside what rewards like the context's can add up to")
    return warnings


def _possible_values(prompt: Prompt) -> tuple[float, float]:
    """What rewards like the context's can add up to; an episode may also end at once, hence 0 in between."""
    low, high = min(prompt.rewards.min(), 0.0), max(prompt.rewards.max(), 0.0)
    return float(low / (1 - prompt.gamma)), float(high / (1 - prompt.gamma))


def _unseen_ids(trajectory: Trajectory, observations: Observations) -> int:
    if not isinstance(trajectory.observation_space, spaces.Discrete):
        return 0
    (_, ids) = next(named_leaves(observations, "observations"))
    return int((~np.isin(ids, trajectory.observations)).sum())
