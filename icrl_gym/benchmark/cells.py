"""What is measured: tasks (environment, policy, discount), variants of estimators, conditions, and their product.

All have ids. Whatever can change a cell's figures is part of its id, so that a sweep which is resumed under other
conditions computes other cells and never mixes them with the old ones.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from gymnasium.envs.registration import EnvSpec

from icrl_gym.acting.environments import environment_spec

_FIRST_FIELDS = {"env", "policy", "gamma", "wrapper", "env_kwargs", "truth"}  # of Task, in every id

CRITIC = "critic"  # the estimator name that stands for the policy's own SB3 critic
POLICY_FEATURES = "policy"  # observations as the policy's own SB3 feature extractor encodes them


@dataclass(frozen=True)
class Task:
    """A policy in an environment, with a discount.

    Attributes:
        env: environment id.
        policy: "random", or a snapshot's path below the critics' folder, such as
            "CartPole-v1/ppo-seed0/steps30000.zip".
        gamma: discount.
        wrapper: "module:Class", or None.
        env_kwargs: keyword arguments of the environment, as sorted (name, value) pairs.
        truth: "exact" or "monte_carlo".
        extra: the package extra that the environment needs, for the message where it is missing.
        behaviour: who acted in the contexts, if not the policy: "epsilon:0.3" (the policy, at random with probability
            .3), "random", or a snapshot's path. The truth is the policy's. Where both can state the probabilities of
            their actions, the contexts hold importance ratios; elsewhere, as for continuous actions, they are plain
            logs of the behaviour, which only estimators that ask the policy can use, and the others refuse.
        features: None, or "policy": estimators get what the policy's SB3 feature extractor makes of the observations.
    """

    env: str
    policy: str = "random"
    gamma: float = 0.99
    wrapper: str | None = None
    env_kwargs: tuple[tuple[str, Any], ...] = ()
    truth: str = "monte_carlo"
    extra: str = ""
    behaviour: str | None = None
    features: str | None = None

    @property
    def spec(self) -> EnvSpec:
        """The environment with its arguments and its wrapper.

        Raises:
            ValueError: unknown id or wrapper.
        """
        return environment_spec(self.env, dict(self.env_kwargs), self.wrapper)

    @property
    def target(self) -> Task:
        """The same values with nothing said of how they are estimated: tasks of one target share their truth."""
        return replace(self, behaviour=None, features=None)

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Paths of the trained policies that the task needs, below the critics' folder."""
        return tuple(name for name in (self.policy, self.behaviour) if name is not None and name.endswith(".zip"))

    @property
    def id(self) -> str:
        """Stable over versions as long as the task is the same.

        ``extra`` is no part of it, and neither is a field that came later and is at its default.
        """
        content = {name: value for name, value in asdict(self).items() if name != "extra"}
        defaults = {known.name: known.default for known in fields(self)}
        return digest(
            {name: value for name, value in content.items() if name in _FIRST_FIELDS or value != defaults[name]}
        )


@dataclass(frozen=True)
class Variant:
    """An estimator under one choice of its options.

    Attributes:
        estimator: a name of `icrl_gym.estimators`, or "critic".
        options: keyword arguments, as sorted (name, value) pairs; empty is the documented default.
    """

    estimator: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether no option is given."""
        return not self.options

    @classmethod
    def of(cls, estimator: str, options: dict[str, Any]) -> Variant:
        """The variant of these keyword arguments."""
        return cls(estimator, tuple(sorted(options.items())))


@dataclass(frozen=True)
class Conditions:
    """What else decides a cell's figures, beside its task, variant, length and seed.

    Attributes:
        num_queries: states that are scored; of an exact truth, states it starts in.
        num_rollouts: simulated continuations per state; 0 where the truth is exact.
        policy_sha256: content of the policy's snapshot, None for "random" or where the file is missing.
        behaviour_sha256: content of the behaviour's snapshot, if it is one.
        weights_sha256: content of the pretrained checkpoint that the estimator reads, if it reads one.
    """

    num_queries: int
    num_rollouts: int
    policy_sha256: str | None = None
    behaviour_sha256: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True)
class Cell:
    """One record of a sweep.

    Attributes:
        task: the policy whose values are estimated.
        variant: the estimator.
        context_length: transitions in the context.
        seed: seed of the context.
        conditions: what it is measured with.
    """

    task: Task
    variant: Variant
    context_length: int
    seed: int
    conditions: Conditions

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that tell cells apart; computed when first asked for."""
        content = {
            "task": self.task.id,
            "variant": asdict(self.variant),
            "context_length": self.context_length,
            "seed": self.seed,
            "conditions": asdict(self.conditions),
        }
        return digest(content)

    @property
    def question(self) -> tuple[Task, Variant, int, int]:
        """The cell without its conditions; a report holds one answer to each question."""
        return self.task, self.variant, self.context_length, self.seed


def digest(content: dict[str, Any]) -> str:
    """16 hexadecimal digits that tell one JSON object from another."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
