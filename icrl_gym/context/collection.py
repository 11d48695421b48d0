"""`collect`: run a policy in an environment, or in many side by side, until there are enough transitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from icrl_gym.acting.environments import EnvironmentLike, make_environment
from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.context.recorder import Recorder, batch_of_one
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, stack


class BatchOfOne:
    """One environment behind the face of a vector of one that its caller resets."""

    def __init__(self, env: gymnasium.Env) -> None:
        self._env = env
        self.num_envs = 1
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Observations, dict[str, Any]]:
        """Observations (1,) + shape, and info."""
        del options
        observation, info = self._env.reset(seed=seed)
        return stack([observation]), info

    def step(self, actions: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Arrays with one row, and info."""
        return batch_of_one(*self._env.step(actions[0]))


def collect(
    env: EnvironmentLike | VectorEnv,
    policy: Any,
    num_transitions: int,
    seed: int | np.random.Generator | None = 0,
    *,
    deterministic: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Run a policy until there are exactly ``num_transitions`` transitions.

    The environment is reset with ``seed`` first, and the policy's own randomness is seeded with it too; the transitions
    are those of a plain loop with the same seeds. A vector is stepped until there are enough, and the newest are
    dropped. An environment that was passed in is left where the run stopped; one made here is closed.

    Args:
        env: an id, a specification, an environment or a vector environment.
        policy: anything that `icrl_gym.acting.policies.as_policy` accepts.
        num_transitions: at least 1, over all environments of a vector.
        seed: an integer, a generator that integers are drawn from, or None for fresh entropy.
        deterministic: SB3 models and tables take their most likely action.
        progress: called as ``progress(transitions so far, num_transitions)`` after every step.

    Raises:
        ValueError: unknown id, a policy that does not fit, ``num_transitions`` < 1, NaN or infinite values.
        TypeError: an argument of a wrong kind, or spaces without an array form.
    """
    if not isinstance(num_transitions, (int, np.integer)) or num_transitions < 1:
        raise ValueError(f"num_transitions must be an integer of at least 1, got {num_transitions!r}")
    made = env if isinstance(env, VectorEnv) else make_environment(env)
    try:
        streams = made if isinstance(made, VectorEnv) else BatchOfOne(made)
        spaces_of_one = streams.single_action_space, streams.single_observation_space
        env_seed = _integer_seed(seed)
        policy_seed = seed if isinstance(seed, np.random.Generator) else env_seed
        actor = as_policy(policy, *spaces_of_one, deterministic=deterministic, seed=policy_seed)
        recorder = Recorder(made, actor.identity)
        _run(streams, actor, recorder, int(num_transitions), env_seed, progress)
        return recorder.trajectory(first=int(num_transitions))
    finally:
        if not isinstance(env, (gymnasium.Env, VectorEnv)):
            made.close()


def _integer_seed(seed: int | np.random.Generator | None) -> int | None:
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**31))
    return None if seed is None else int(seed)


def _run(
    streams: VectorEnv | BatchOfOne,
    actor: ActingPolicy,
    recorder: Recorder,
    total: int,
    seed: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    observations, _ = streams.reset(seed=seed)
    recorder.reset(observations)
    state = actor.initial_state(streams.num_envs)
    while True:
        actions, state = actor.act_recurrent(observations, state, recorder.started)
        observations, rewards, terminated, truncated, infos = streams.step(actions)
        recorder.step(actions, observations, rewards, terminated, truncated, infos)
        if progress is not None:
            progress(min(len(recorder), total), total)
        if len(recorder) >= total:
            return
        waiting = recorder.waiting
        if waiting.any():
            observations, _ = streams.reset(options={"reset_mask": waiting})
            recorder.reset(observations, waiting)
