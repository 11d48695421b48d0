"""`InContextEvaluator`: a policy's values from one stretch of its experience, without a gradient step.

`fit` compiles the context into the network's memory, `predict` costs one row of attention per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.asked import asked_policy, has_acted
from icrl_gym.context.features import FeatureFunction, FeatureMap
from icrl_gym.context.pairs import (
    as_pairs,
    known_successors,
    pair_process,
    state_action_prompt,
    state_action_trajectory,
)
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.target_pairs import WeightedActions, expected_actions
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.answer import estimates_of
from icrl_gym.evaluator.checkpoint import available_checkpoints, bundled_checkpoint, load_checkpoint
from icrl_gym.evaluator.compiled import CompiledMixture
from icrl_gym.evaluator.held import LogInParts, Part, Where
from icrl_gym.evaluator.mixture import Construction, Generalist, Network
from icrl_gym.evaluator.parts import PartsSum
from icrl_gym.evaluator.rewards import RewardValues
from icrl_gym.evaluator.setting import Options
from icrl_gym.evaluator.streaming import Stream, check_going_on, gone_on
from icrl_gym.evaluator.target_values import TargetValues
from icrl_gym.evaluator.world import ExpectedValues, ImaginedValues, Scene
from icrl_gym.evaluator.world.tabled import TabledValues
from icrl_gym.evaluator.world.tables import TableWorld
from icrl_gym.observations import Observations, as_batch
from icrl_gym.runs import Progress
from icrl_gym.values import ValueEstimates

CONSTRUCTED = "constructed"
Compiled = CompiledMixture | TargetValues | ExpectedValues | ImaginedValues | TabledValues
IMAGINATIONS = (None, True, False, "log", "expected")


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
        device: torch device.
        dtype: torch.float64 (default) or torch.float32.
        model: a mixture of heads with pretrained error bars, or None for the construction alone. Options given by hand
            hold in all its heads.
        imagination: whether the context's world is used: transitions in expectation over the policy's action, and
            values followed in it before softmax TD takes over. None: with a mixture it is. "expected": the first
            alone; "log": the second alone, a policy that acted being known by its logged actions.

    Attributes:
        model: the network as selected; ``model.heads`` are its settings.
        trajectory_, prompt_, compiled_: the context, its prompt, and the prompt under the network, once fitted.
        asked_policy_: the policy to be evaluated, if one was given that can be asked, else None.

    Raises:
        ValueError, TypeError: an option is out of range.
    """

    asked_policy_: AskedPolicy | None = None
    _policy_notes: tuple[str, ...] = ()

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
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
        model: Generalist | None = None,
        imagination: bool | Literal["log", "expected"] | None = None,
    ) -> None:
        options = Options(num_layers, bandwidth, trace_decay, sink, forgetting, step_size, averaging)
        if model is not None and plain:
            raise ValueError("plain=True is Theorem 1's network, which is not pretrained: use the name 'constructed'")
        self.model: Network
        if model is None:
            self.model = Construction(options.setting(plain))
        else:
            self.model = replace(model, heads=tuple(map(options.on, model.heads)))
        if imagination not in IMAGINATIONS:
            raise ValueError(f"imagination must be one of {IMAGINATIONS}, got {imagination!r}")
        self.imagination = model is not None if imagination is None else imagination
        self.features = features
        self.device = torch.device(device)
        self.dtype = dtype

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "generalist", device: str | torch.device = "cpu", **options: Any
    ) -> Self:
        """The evaluator of this name. Nothing is downloaded.

        Args:
            name: "generalist": the mixture of heads, its error bars pretrained on synthetic systems; "constructed":
                Theorem 1's network with the extensions of theory section 7, nothing in it trained; or the path of your
                own checkpoint (.safetensors, its card beside it).
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

    def fit(self, trajectory: Trajectory, gamma: float, policy: Any = None) -> Self:
        """Take a context. No gradient step is made.

        A policy that can be asked, and that did not act or is not known to have acted, is evaluated from columns of
        state-action pairs whose next action is its own; importance ratios are not used then.

        Args:
            trajectory: logged transitions.
            gamma: discount in [0, 1).
            policy: the policy to be evaluated, anything `as_policy` takes; None: the one that acted, known by its
                actions.

        Raises:
            TypeError: not a Trajectory, observations without features, or not a policy.
            ValueError: gamma out of range, or a policy that does not fit the log (see `asked_policy`).
        """
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"trajectory must be a Trajectory, got {type(trajectory).__name__}")
        feature_map = FeatureMap(trajectory.observation_space, self.features).fit(trajectory.observations)
        prompt = Prompt.from_trajectory(trajectory, gamma, feature_map)
        self.asked_policy_, self._policy_notes = asked_policy(policy, trajectory)
        return self._compile(trajectory, prompt)

    def fit_parts(
        self,
        parts: Sequence[Part],
        gamma: float,
        policy: Any = None,
        *,
        held: int = 32_768,
        workers: Where = None,
        progress: Progress = lambda *_: None,
    ) -> Self:
        """Take a log that is larger than memory, or than one machine, as a context; see docs/large_logs.md.

        Every part is loaded, summed and let go of. A log of at most ``held`` transitions is joined and goes to `fit`.
        Of a longer one so many, evenly over it, become ``trajectory_``: features, keys, error bars, walks and action
        values are read off these, the values of states off all transitions. A part ends like a log that stops: no trace
        passes on. Attention falls on the held transitions; there is no attribution.

        Args:
            parts: trajectories, paths that `Trajectory.save` wrote, or functions that return a trajectory, each of
                which is loaded up to three times.
            gamma, policy: as in `fit`; the policy has to be the one that acted.
            held: at most so many transitions are held in memory.
            workers: None: this process; or what `icrl_gym.open_workers` gives; or "torch.distributed": every process of
                an initialised group calls this with the same parts, and sums its share.
            progress: called as ``progress(part of the work, done, total)``.

        Raises:
            TypeError, ValueError: as `fit` does; parts of another kind, or that differ in what they must share; a
                policy that did not act; or options under which every transition is a key.
            RuntimeError: "torch.distributed" without a process group.
        """
        log = LogInParts.read(parts, held, workers, progress)
        if log.is_held:
            return self.fit(log.held, gamma, policy)
        prompt, (asked, notes) = log.prompt(gamma, self.features), log.asked(policy)
        total = PartsSum.of(self._compiled(prompt), log, workers, progress)
        self.asked_policy_, self._policy_notes = asked, notes
        return self._compile(log.held, prompt, total)

    def update(
        self,
        trajectory: Trajectory,
        refit: bool = False,
        policy: Any = None,
        *,
        window: int | None = None,
        decay: float = 1.0,
    ) -> Self:
        """Append transitions to the context; feature statistics stay frozen unless ``refit``.

        Above 1,024 transitions softmax TD's part costs in the new transitions, not in the context (streaming.py); what
        is read off the whole context is read again each time that half as many transitions have come as it had. For a
        log in parts they are one more part; its held context stays.

        Args:
            trajectory: more transitions of the same environment.
            refit: whether to read everything off the whole context anew.
            policy: another policy to be evaluated from now on; None: as before.
            window: at most so many of the latest transitions are kept; None: all.
            decay: factor in (0, 1] by which the transitions that were there count less from now on, for a policy that
                changes.

        Raises:
            RuntimeError: called before `fit`.
            ValueError: the log is of another environment, policy or observation space, ``policy`` does not fit it, or
                window or decay is out of range; or refit, policy or window beside a log in parts.
        """
        self._check_fitted()
        check_going_on(window, decay)
        stream = self._stream
        if isinstance(stream, PartsSum):
            if refit or policy is not None or window is not None:
                raise ValueError("refit, policy, window: a log in parts keeps no transitions; call fit_parts anew")
            stream = stream.plus(trajectory, decay, self.trajectory_)
            return self._compile(self.trajectory_, stream.prompt, stream)
        joined, feature_map = self.trajectory_.append(trajectory), self.prompt_.feature_map
        dropped = 0 if window is None else max(0, len(joined) - window)
        joined = joined[dropped:] if dropped else joined
        if refit:
            feature_map = FeatureMap(joined.observation_space, self.features).fit(joined.observations)
        dropped = min(dropped, len(self.prompt_))
        prompt = gone_on(self.prompt_, Prompt.from_trajectory(joined, self.prompt_.gamma, feature_map), dropped, decay)
        if policy is not None:
            self.asked_policy_, self._policy_notes = asked_policy(policy, joined)
        if stream is not None:
            stream = stream.extended(prompt, dropped, decay) if policy is None and not refit else None
        return self._compile(joined, prompt, stream)

    @property
    def goes_on(self) -> bool:
        """Whether `update` costs in its new transitions alone: not in short contexts, nor where there are walks."""
        self._check_fitted()
        return not self.imagination and isinstance(self._stream, Stream) and self._stream.goes_on

    def predict(self, observations: Observations) -> ValueEstimates:
        """Values of raw observations (Q,) + shape, as `ValueEstimates` with standard errors, layers and diagnostics.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: the observations do not fit the observation space.
        """
        self._check_fitted()
        observations = as_batch(observations, self.trajectory_.observation_space, "observations")
        return self._answer(observations, self._compiled_at(observations))

    def _answer(self, observations: Observations, compiled: Compiled) -> ValueEstimates:
        """The estimates of the compiled context at checked observations."""
        features_QD = self.prompt_.queries(observations)
        of_another = isinstance(getattr(compiled, "leaf", compiled), TargetValues)
        found, notes = compiled.read(features_QD), self._policy_notes
        answer = estimates_of(
            compiled, self.trajectory_, observations, features_QD, found, notes=notes, of_another=of_another
        )
        return replace(answer, estimand=self.prompt_.estimand)

    def predict_rewards(self, rewards: np.ndarray, observations: Observations) -> RewardValues:
        """What the values would be if the rewards were others: values (Q, R) of R reward functions on this context.

        They are those of a fit to the same transitions with these rewards, exactly, provided that everything that is
        chosen stays as the context's own rewards have it: relevance of features, weights of the heads and of walks of
        each length, the world's choices, and whether the averager takes over. The constructed evaluator chooses
        nothing by rewards but the last, and that by the context.

        Args:
            rewards: (N, R), a column for each reward function, in the order of the context's transitions.
            observations: (Q,) + shape.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: the observations do not fit the observation space, or the rewards are not N rows of
                finite numbers.
        """
        self._check_fitted()
        observations = as_batch(observations, self.trajectory_.observation_space, "observations")
        return RewardValues.of(self._compiled_at(observations), rewards, observations)

    def predict_q(self, observations: Observations, actions: Any) -> ValueEstimates:
        """Action values Q^pi of the policy to be evaluated, from the same context as columns of state-action pairs.

        The estimates' observations are the pairs, and their estimand is that of the process of pairs. Of a policy that
        is known by its logged actions, the transition in which a stretch ends without terminating is not used: its next
        action is not known.

        Args:
            observations: (Q,) + shape.
            actions: (Q,) + action shape, one for each observation.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: observations or actions do not fit the context's, their numbers differ, or the
                context holds no actions, or no transition whose next action is known.
        """
        self._check_fitted()
        leaf = getattr(self.compiled_, "leaf", self.compiled_)
        if isinstance(leaf, TargetValues):
            return self._targets_action_values(leaf, observations, actions)
        if self._of_pairs is None:
            pairs = state_action_trajectory(self.trajectory_)
            prompt = state_action_prompt(pairs, self.prompt_.gamma, self.prompt_.feature_map)
            of_pairs = copy(self)
            of_pairs.imagination = False
            self._of_pairs = of_pairs._compile(pairs, prompt)
        of_pairs = self._of_pairs
        estimates = of_pairs.predict(as_pairs(observations, actions, of_pairs.trajectory_.observation_space))
        return replace(estimates, attribute=lambda: self._on_all_rewards(estimates.attribution()))

    def _targets_action_values(
        self, compiled: TargetValues, observations: Observations, actions: Any
    ) -> ValueEstimates:
        """Action values of a policy that did not act: its values where the first action is given."""
        pairs = as_pairs(observations, actions, compiled.pairs.prompt.feature_map.space)
        given = WeightedActions(pairs[1][:, None], np.ones((len(pairs[1]), 1)))
        estimates = self._answer(pairs[0], compiled.with_actions(given))
        estimand = replace(estimates.estimand, env=pair_process(estimates.estimand.env))
        return replace(estimates, observations=pairs, estimand=estimand)

    def _on_all_rewards(self, attribution_QK: np.ndarray) -> np.ndarray:
        """Columns for every reward of the context, zero where `predict_q` does not use it."""
        attribution_QN = np.zeros((len(attribution_QK), len(self.trajectory_)))
        attribution_QN[:, known_successors(self.trajectory_)] = attribution_QK
        return attribution_QN

    def attention(self, observations: Observations) -> np.ndarray:
        """Attention of queries over the context's sources, (Q, N): share-weighted over the heads that answer.

        Rows sum to 1 less the sinks' shares. A landmark's attention falls on the transition that starts in it.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: the observations do not fit the observation space.
        """
        self._check_fitted()
        features_QD = self.prompt_.queries(observations)
        return self._compiled_at(observations).attention(features_QD)

    def _compile(self, trajectory: Trajectory, prompt: Prompt, stream: Stream | PartsSum | None = None) -> Self:
        if self.asked_policy_ is not None:
            prompt = replace(prompt, estimand=replace(prompt.estimand, policy=self.asked_policy_.identity))
        self.trajectory_, self.prompt_ = trajectory, prompt
        self._of_pairs: Self | None = None
        self._stream: Stream | PartsSum | None = stream
        self.compiled_ = self._run(prompt)
        return self

    def _run(self, prompt: Prompt) -> Compiled:
        """The context as it is answered from: under the network, and in its world where that holds."""
        log, asked = self.trajectory_, self.asked_policy_
        acted = has_acted(asked, log)
        if not self.imagination:
            return self._leaf(prompt, None if acted else asked)
        if acted and self.imagination == "log":
            asked = None
        known = asked is not None or (log.actions is not None and prompt.importance_ratios is None)
        whole = not isinstance(self._stream, PartsSum)  # of a log in parts a sample is held, and the leaf has read all
        table = TableWorld.fit(log, prompt, asked, acted=acted) if known and whole else None
        if table is not None:
            leaf = self._leaf(prompt, None if acted else asked)
            of_rewards = leaf.values_of_rewards if isinstance(leaf, CompiledMixture) else None
            return TabledValues(leaf, lambda seen: _at(leaf, asked, seen), of_rewards, table)
        scene = Scene.of(prompt, log, asked, acted=acted, device=self.device)
        leaf = self._leaf(prompt, None if acted else asked, scene)
        walked = None if scene is None or self.imagination == "expected" else scene.values(leaf)
        return walked or leaf

    def _leaf(
        self, prompt: Prompt, other: AskedPolicy | None, scene: Scene | None = None
    ) -> CompiledMixture | ExpectedValues | TargetValues:
        """The context under the network: as pairs where another policy is asked, else as states, with transitions in
        expectation over the policy's action where the scene knows it. A log in parts stays as it is.
        """
        if other is not None:
            return TargetValues.of(self.trajectory_, prompt, other, self._compiled)
        if self._stream is None:
            self._stream = Stream.of(self._compiled(prompt))
        leaf = self._stream.mixture
        variates = None if scene is None or isinstance(self._stream, PartsSum) else scene.variates(leaf)
        if variates is None:
            return leaf
        self._stream = None
        return ExpectedValues(variates, self._compiled(variates.expected))

    def _compiled(self, prompt: Prompt) -> CompiledMixture:
        return self.model.compile(prompt, self.device, self.dtype)

    def _compiled_at(self, observations: Observations) -> Compiled:
        """The compiled context for these queries."""
        if isinstance(self.compiled_, TabledValues):
            return self.compiled_.at(observations)
        return _at(self.compiled_, self.asked_policy_, observations)

    def _check_fitted(self) -> None:
        if not hasattr(self, "compiled_"):
            raise RuntimeError("this evaluator has no context yet: call fit(trajectory, gamma) first")


def _at(compiled: Compiled, asked: AskedPolicy | None, observations: Observations) -> Any:
    """The compiled context for queries of which more than the features is known."""
    if isinstance(compiled, TargetValues) and asked is not None:
        return compiled.with_actions(expected_actions(asked, observations))
    return compiled
