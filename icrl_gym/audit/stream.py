"""`RolloutStream`: the newest transitions of a training run, copied as Stable-Baselines3 makes them.

No environment is stepped. What is kept is raw: observations before VecNormalize, rewards before VecNormalize and before
the algorithm adds its critic's value at time limits, actions as the environment executed them. Rows are whole steps of
the vector; steps of earlier policies are kept too, and `Stretch.num_policies` says how many policies there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from icrl_gym.acting.environments import environment_identity
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, batch_size, concatenate, map_leaves, stack

CONTEXT_SHARE = 0.25  # of the steps held: what an evaluator reads; the rest is for the returns


class Step(NamedTuple):
    """One step of all B environments. There is one for every step of a training, so it is as cheap as can be.

    Attributes:
        observations: what was seen before the step, B rows.
        actions: B actions, as executed.
        rewards: (B,), the environment's own.
        done: (B,) bool, whether the episode ended.
        limits: (B,) bool, whether it was a time limit that ended it.
        finals: the true successor of each environment whose episode ended, by its index.
        policy_number: how many times the policy had been updated, or may have been, before this step.
        memory: state of a recurrent model before the step, or None.
        starts: (B,) bool, whether that state is to be forgotten first.
    """

    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    done: np.ndarray
    limits: np.ndarray
    finals: Mapping[int, Any]
    policy_number: int
    memory: Any
    starts: np.ndarray


_NO_FINALS: Mapping[int, Any] = {}


@dataclass(frozen=True, eq=False)
class Stretch:
    """Successive steps of all environments.

    Attributes:
        trajectory: the transitions, environment by environment, with true successors; its policy is not stated.
        num_envs: number of environments, B.
        num_policies: number of policies that acted.
        memory: state of a recurrent model before the first step, or None.
        starts: (n,) bool, the rows at which that state is to be forgotten first.
    """

    trajectory: Trajectory
    num_envs: int
    num_policies: int
    memory: Any
    starts: np.ndarray


class RolloutStream:
    """The newest transitions of one model's training, in whole steps of its vector environment.

    Args:
        model: a Stable-Baselines3 model whose training is about to start: its environment has been reset.
        capacity: number of transitions to keep, over all environments.

    Raises:
        ValueError: frames are stacked above a VecNormalize that normalises observations.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self._model = model
        vec_normalize: Any = model.get_vec_normalize_env()
        self._vec_normalize = vec_normalize
        self._raw = vec_normalize is not None and bool(vec_normalize.norm_obs)
        if vec_normalize is not None and self._raw and vec_normalize.observation_space != model.observation_space:
            raise ValueError(
                f"env: VecNormalize normalises {vec_normalize.observation_space}, but the model sees "
                f"{model.observation_space}: wrap VecNormalize around the stacked frames, not inside them"
            )
        self._num_envs = int(model.n_envs)
        self._steps: deque[Step] = deque(maxlen=max(2, capacity // self._num_envs))
        self._current: Observations | None = self._seen(model._last_obs)
        members = getattr(getattr(model.get_env(), "unwrapped", None), "envs", None)
        self._env_id = environment_identity(members[0]) if members else None
        self._no_limits = np.zeros(self._num_envs, dtype=bool)
        self.policy_number = 0

    def __len__(self) -> int:
        """Number of transitions held."""
        return len(self._steps) * self._num_envs

    @property
    def full(self) -> bool:
        """Whether there are as many transitions as were asked for."""
        return len(self._steps) == self._steps.maxlen

    def clear(self) -> None:
        """Forget all steps; the next one only shows where to go on from."""
        self._steps.clear()
        self._current = None

    def step(self, names: Mapping[str, Any]) -> None:
        """Copy the step that was just made from the local names of the algorithm's ``collect_rollouts``.

        The first one after `clear` is not kept, as it is not known what was seen before it.
        """
        if self._current is not None:
            self._keep(names)
        self._current = self._seen(names["new_obs"])

    def _keep(self, names: Mapping[str, Any]) -> None:
        done, actions = names["dones"], names["clipped_actions"] if "clipped_actions" in names else names["actions"]
        rewards = names["rewards"] if self._vec_normalize is None else self._vec_normalize.get_original_reward()
        limits, finals = self._no_limits, _NO_FINALS
        if done.any():
            infos = names["infos"]
            limits = done & np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
            finals = {int(i): self._final(infos[i]["terminal_observation"]) for i in np.flatnonzero(done)}
        self._steps.append(
            Step(
                self._current, np.array(actions), np.array(rewards, dtype=np.float64), np.array(done), limits, finals,
                self.policy_number, getattr(self._model, "_last_lstm_states", None), self._model._last_episode_starts,
            )
        )  # fmt: skip

    def split(self) -> tuple[Stretch, Stretch]:
        """The older part of the steps held, for a context, and the newer part, for an examination.

        Raises:
            ValueError: fewer than four steps are held, or an observation or a reward is not finite.
        """
        steps, first = list(self._steps), int(CONTEXT_SHARE * len(self._steps))
        if not first or self._current is None:
            raise ValueError(f"the stream must hold at least 4 steps to be split, got {len(steps)}")
        older, newer = steps[:first], steps[first:]
        return self._stretch(older, newer[0].observations), self._stretch(newer, self._current)

    def _stretch(self, steps: list[Step], after: Observations) -> Stretch:
        seen = [step.observations for step in steps]
        successors = [_with_finals(later, step.finals) for step, later in zip(steps, [*seen[1:], after], strict=True)]
        actions, rewards, done, limits, starts = (
            _by_env(np.stack(column)) for column in zip(*map(_columns, steps), strict=True)
        )
        done, limits = done.astype(bool), limits.astype(bool)
        last = np.zeros((len(steps), self._num_envs), dtype=bool)
        last[-1] = True
        trajectory = Trajectory(
            map_leaves(_by_env, _stacked(seen)),
            actions.reshape(len(rewards), *self._model.action_space.shape),
            rewards,
            map_leaves(_by_env, _stacked(successors)),
            done & ~limits,
            limits,
            episode_ends=done | _by_env(last),
            observation_space=self._model.observation_space,
            env_id=self._env_id,
        )
        num_policies = len({step.policy_number for step in steps})
        return Stretch(trajectory, self._num_envs, num_policies, steps[0].memory, starts.astype(bool))

    def _seen(self, observations: Observations) -> Observations:
        """A copy of the current observations as they are stored."""
        if self._raw:
            return self._vec_normalize.get_original_obs()
        return map_leaves(np.array, observations)

    def _final(self, observation: Any) -> Any:
        return self._vec_normalize.unnormalize_obs(observation) if self._raw else map_leaves(np.array, observation)


def _columns(step: Step) -> tuple[np.ndarray, ...]:
    return step.actions, step.rewards, step.done, step.limits, step.starts


def _stacked(steps: list[Observations]) -> Observations:
    """T batches of B rows as arrays (T, B, ...)."""
    return map_leaves(lambda *leaves: np.stack(leaves), *steps)


def _by_env(column_TB: np.ndarray) -> np.ndarray:
    """(T, B, ...) -> (B T, ...), environment by environment."""
    return np.swapaxes(column_TB, 0, 1).reshape(-1, *column_TB.shape[2:])


def _with_finals(observations: Observations, finals: Mapping[int, Any]) -> Observations:
    """The true successors, where ``observations`` shows the first of a new episode already."""
    if not finals:
        return observations
    rows = stack(list(finals.values()))

    def put(leaf: np.ndarray, final_leaf: np.ndarray) -> np.ndarray:
        result = np.array(leaf)
        result[list(finals)] = final_leaf
        return result

    return map_leaves(put, observations, rows)


def with_last_successors(stretch: Stretch) -> Observations:
    """The observations of each environment in order, with the one after its last step: B sequences, joined."""
    trajectory = stretch.trajectory
    length = len(trajectory) // stretch.num_envs
    parts = []
    for env in range(stretch.num_envs):
        rows = slice(env * length, (env + 1) * length)
        parts.append(map_leaves(lambda leaf, rows=rows: leaf[rows], trajectory.observations))
        parts.append(map_leaves(lambda leaf, last=rows.stop - 1: leaf[last : last + 1], trajectory.next_observations))
    joined = concatenate(parts)
    assert batch_size(joined) == len(trajectory) + stretch.num_envs
    return joined
