"""`Trajectory`: logged experience of one policy, checked once, stored on disk without pickle.

Row k is the transition (S_k, A_k, R_{k+1}, S_{k+1}). ``next_observations`` is always the TRUE successor: at an
episode's end the final observation, never the one after a reset. ``terminated`` and ``truncated`` are the environment's
own flags; the cut at the end of a log is an ``episode_end`` without either flag. Streams of a vector environment are
stored one after another.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.context.checked_fields import (
    check_lengths,
    check_values,
    checked_episode_ends,
    checked_ratios,
    common_space,
    default_episode_ends,
    flags,
    larger_space,
)
from icrl_gym.context.logs.archives import stored_log, write_log
from icrl_gym.context.logs.assembly import assembled
from icrl_gym.context.logs.columns import ColumnMapping, Columns
from icrl_gym.context.logs.frames import frame_columns
from icrl_gym.context.logs.logged_arrays import LoggedArrays
from icrl_gym.context.logs.minari_datasets import minari_log, write_minari
from icrl_gym.context.logs.sb3_buffers import replay_log, rollout_log
from icrl_gym.observations import (
    Observations,
    as_batch,
    as_numeric,
    check_finite,
    concatenate,
    rows_equal,
    take,
)


@dataclass(frozen=True, eq=False, init=False)
class Trajectory:
    """n transitions of one policy in one environment.

    Args:
        observations: (n,) + observation shape; Discrete is int (n,); Dict / Tuple spaces keep their structure.
        actions: (n,) + action shape; None where the log does not hold them: values of states need none.
        rewards: (n,) float.
        next_observations: like ``observations``: the true successors.
        terminated: (n,) bool.
        truncated: (n,) bool.
        episode_ends: (n,) bool, True where the next row does not continue this one. Default: terminated | truncated |
            last row | next_observations[k] != observations[k + 1].
        observation_space: default: 1-D integers are Discrete(max + 1), all else is an unbounded Box.
        env_id: environment identity for the estimand, or None if unknown.
        policy: policy identity for the estimand, or None if unknown.
        importance_ratios: (n,) pi / mu of the logged actions where another policy mu acted than the ``policy`` pi whose
            values are asked for (`icrl_gym.reweight` makes them); None: ``policy`` itself acted.

    Raises:
        ValueError: empty, lengths or shapes disagree, a value is NaN or infinite (field and first index are named),
            ``episode_ends`` denies an end that the flags state, or a ratio is negative.
        TypeError: an array has the wrong kind or structure.
    """

    observations: Observations
    actions: np.ndarray | None
    rewards: np.ndarray
    next_observations: Observations
    terminated: np.ndarray
    truncated: np.ndarray
    episode_ends: np.ndarray
    observation_space: spaces.Space
    env_id: str | None
    policy: str | None
    importance_ratios: np.ndarray | None
    _space_inferred: bool = field(init=False, repr=False)

    def __init__(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        terminated: Any,
        truncated: Any,
        episode_ends: Any = None,
        observation_space: spaces.Space | None = None,
        env_id: str | None = None,
        policy: str | None = None,
        importance_ratios: Any = None,
    ) -> None:
        inferred = observation_space is None
        if observation_space is None:
            observation_space = common_space(observations, next_observations)
        observations = as_batch(observations, observation_space, "observations")
        next_observations = as_batch(next_observations, observation_space, "next_observations")
        actions = None if actions is None else as_numeric(actions, "actions")
        rewards = as_numeric(rewards, "rewards").astype(np.float64)
        terminated, truncated = flags(terminated, "terminated"), flags(truncated, "truncated")
        fields_given = (observations, actions, rewards, next_observations, terminated, truncated)
        check_lengths(dict(zip(_ARRAYS, fields_given, strict=False)))
        check_values(observations, observation_space, "observations")
        check_values(next_observations, observation_space, "next_observations")
        check_finite(rewards, "rewards")
        stated = terminated | truncated
        ends = (
            default_episode_ends(observations, next_observations, stated)
            if episode_ends is None
            else checked_episode_ends(episode_ends, stated)
        )
        for name, value in zip(_ARRAYS, (*fields_given, ends), strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "observation_space", observation_space)
        object.__setattr__(self, "env_id", env_id)
        object.__setattr__(self, "policy", policy)
        object.__setattr__(self, "importance_ratios", checked_ratios(importance_ratios, len(rewards)))
        object.__setattr__(self, "_space_inferred", inferred)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def num_transitions(self) -> int:
        """Number of transitions, n."""
        return len(self.rewards)

    @property
    def num_complete_episodes(self) -> int:
        """Number of episodes that end with a flag of the environment's own."""
        return int((self.terminated | self.truncated).sum())

    @property
    def space_inferred(self) -> bool:
        """Whether the observation space was inferred from the arrays, not stated."""
        return self._space_inferred

    def __getitem__(self, rows: slice) -> Trajectory:
        """A contiguous stretch; its last row becomes an episode end (not marked truncated)."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"a trajectory is indexed by a slice of step 1, got {rows!r}")
        ends = self.episode_ends[rows].copy()
        if not len(ends):
            raise ValueError(f"the slice {rows.start}:{rows.stop} of a trajectory of {len(self)} transitions is empty")
        ends[-1] = True
        return self._selected(rows, ends)

    def _selected(self, rows: Any, ends: np.ndarray) -> Trajectory:
        stretch = replace(
            self,
            observations=take(self.observations, rows),
            actions=None if self.actions is None else self.actions[rows],
            rewards=self.rewards[rows],
            next_observations=take(self.next_observations, rows),
            terminated=self.terminated[rows],
            truncated=self.truncated[rows],
            episode_ends=ends,
            importance_ratios=None if self.importance_ratios is None else self.importance_ratios[rows],
        )
        return stretch._with_space_inferred(self._space_inferred)

    def episodes(self, indices: Any) -> Trajectory:
        """Whole stretches between episode ends, by their numbers, in the order of the log.

        Raises:
            IndexError: there is no stretch of such a number.
        """
        chosen = np.zeros(int(self.episode_ends.sum()), dtype=bool)
        chosen[np.asarray(indices)] = True
        stretch_of = np.cumsum(self.episode_ends) - self.episode_ends
        return self._selected(chosen[stretch_of], self.episode_ends[chosen[stretch_of]])

    def actions_for(self, purpose: str) -> np.ndarray:
        """The actions (n,) + action shape; ``purpose`` begins the ValueError of a log without them."""
        if self.actions is None:
            raise ValueError(f"{purpose} needs the logged actions, and this trajectory has actions=None")
        return self.actions

    def append(self, more: Trajectory) -> Trajectory:
        """This log followed by another of the same environment and policy.

        The first row of ``more`` continues the last row of this one only if no flag is set there and the states agree.
        An observation space that was only inferred from the arrays gives way to one that was stated; two that were
        inferred are inferred anew. Beside a log with importance ratios one without has ratios of 1.

        Raises:
            TypeError: the observations have different structures.
            ValueError: stated observation spaces, environments or policies differ, or one log alone has actions.
        """
        for name in ("env_id", "policy"):
            mine, theirs = getattr(self, name), getattr(more, name)
            if mine != theirs and mine is not None and theirs is not None:
                raise ValueError(f"append: {name} differs: {mine!r} against {theirs!r}")
        space = self._appended_space(more)
        last, first = take(self.next_observations, slice(-1, None)), take(more.observations, slice(1))
        continues = bool(rows_equal(last, first)[0])
        ends = np.concatenate([self.episode_ends, more.episode_ends])
        ends[len(self) - 1] = bool(self.terminated[-1] or self.truncated[-1] or not continues)
        joined = Trajectory(
            concatenate([self.observations, more.observations]),
            self._appended_actions(more),
            np.concatenate([self.rewards, more.rewards]),
            concatenate([self.next_observations, more.next_observations]),
            np.concatenate([self.terminated, more.terminated]),
            np.concatenate([self.truncated, more.truncated]),
            ends,
            space,
            self.env_id or more.env_id,
            self.policy or more.policy,
            self._appended_ratios(more),
        )
        return joined._with_space_inferred(self._space_inferred and more._space_inferred)

    def with_importance_ratios(self, ratios: Any, policy: str | None) -> Trajectory:
        """The same transitions as evidence about ``policy``, (n,) ratios pi / mu of the logged actions."""
        weighted = replace(self, policy=policy, importance_ratios=ratios)
        return weighted._with_space_inferred(self._space_inferred)

    def _appended_actions(self, more: Trajectory) -> np.ndarray | None:
        if self.actions is None and more.actions is None:
            return None
        return np.concatenate([part.actions_for("append: a log beside one with actions") for part in (self, more)])

    def _appended_ratios(self, more: Trajectory) -> np.ndarray | None:
        parts = (self, more)
        if all(part.importance_ratios is None for part in parts):
            return None
        return np.concatenate([
            np.ones(len(part)) if part.importance_ratios is None else part.importance_ratios for part in parts
        ])  # fmt: skip

    def _appended_space(self, more: Trajectory) -> spaces.Space:
        mine, theirs = self.observation_space, more.observation_space
        if not (self._space_inferred or more._space_inferred) and mine != theirs:
            raise ValueError(f"append: observation_space differs: {mine!r} against {theirs!r}")
        as_batch(more.observations, mine, "append: observations")
        if self._space_inferred and more._space_inferred:
            return larger_space(mine, theirs)
        return theirs if self._space_inferred else mine

    def _with_space_inferred(self, inferred: bool) -> Trajectory:
        object.__setattr__(self, "_space_inferred", inferred)
        return self

    @classmethod
    def of_arrays(cls, log: LoggedArrays) -> Trajectory:
        """The trajectory of a log that was read; what had to be assumed stays with ``log``."""
        return cls(**{name: getattr(log, name) for name in _ARGUMENTS})

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        columns: ColumnMapping | None = None,
        *,
        observation_space: spaces.Space | None = None,
        env_id: str | None = None,
        policy: str | None = None,
    ) -> Trajectory:
        """A table with one transition per row, in order of time.

        Args:
            frame: a pandas or polars DataFrame, a pyarrow Table, or a mapping from names to arrays.
            columns: field -> column, pattern such as "obs_*", or columns side by side, where names differ from those of
                `icrl_gym.context.logs.columns.FIELDS`.
            observation_space, env_id, policy: see the class.

        Raises:
            ValueError, TypeError: no such table, a field is missing, or one that has gaps.

        Warns:
            UserWarning: what the table does not say and was assumed, one warning for each assumption.
        """
        found = frame_columns(frame)
        return cls._warned(assembled(found, columns, observation_space=observation_space, env_id=env_id, policy=policy))

    @classmethod
    def from_d4rl(cls, dataset: Any, *, env_id: str | None = None, policy: str | None = None) -> Trajectory:
        """A dataset in D4RL's names: observations, actions, rewards, terminals; timeouts, next_observations if there.

        Args:
            dataset: a mapping from names to arrays, as ``env.get_dataset()`` returns and as an HDF5 file holds.
            env_id, policy: see the class.

        Raises:
            ValueError, TypeError: no such dataset, or one that cannot be read.

        Warns:
            UserWarning: what the dataset does not say and was assumed.
        """
        arrays = {name: np.asarray(dataset[name]) for name in dataset if hasattr(dataset[name], "shape")}
        return cls._warned(assembled(Columns("dataset", arrays), env_id=env_id, policy=policy))

    @classmethod
    def from_minari(cls, dataset: Any) -> Trajectory:
        """A Minari dataset, or the id of one on this machine; raises as `icrl_gym.read_log` does."""
        return cls._warned(minari_log(dataset))

    @classmethod
    def from_replay_buffer(cls, buffer: Any) -> Trajectory:
        """The content of a ReplayBuffer of Stable-Baselines3, environment by environment, oldest first.

        The experience of many policies along a training: give the one to be evaluated to ``fit(..., policy=model)``.
        Actions of Box spaces, which the algorithms store scaled to [-1, 1], are scaled back.

        Raises:
            TypeError, ValueError: no such buffer, or an empty one.

        Warns:
            UserWarning: time limits or successors that the buffer does not hold.
        """
        return cls._warned(replay_log(buffer))

    @classmethod
    def from_rollouts(cls, buffer: Any, truncated: Any = None, vec_normalize: Any = None) -> Trajectory:
        """The content of a RolloutBuffer of Stable-Baselines3, environment by environment; before or after the update.

        The buffer does not tell time limits from terminations, and Stable-Baselines3 has added gamma times its critic's
        value of the last state to the reward where a time limit stopped an episode. As such an end is taken to
        terminate, the reward stands for what lay beyond it, up to the critic's error. The last step of each environment
        is left out, as where it led is not in the buffer.

        Args:
            buffer: a RolloutBuffer or DictRolloutBuffer.
            truncated: (steps, environments) bool, where a time limit stopped an episode, as a callback sees it in
                ``infos``; these transitions are left out, and with them the critic's values.
            vec_normalize: the VecNormalize that the model trains in: observations and rewards are unnormalised by its
                present statistics, which have moved on a little since.

        Raises:
            TypeError, ValueError: no such buffer, too short a one, or ``truncated`` of another shape.

        Warns:
            UserWarning: what the buffer does not hold.
        """
        return cls._warned(rollout_log(buffer, truncated, vec_normalize))

    @classmethod
    def _warned(cls, log: LoggedArrays) -> Trajectory:
        for assumption in log.assumptions:
            warnings.warn(assumption, stacklevel=3)
        return cls.of_arrays(log)

    def to_minari(self, dataset_id: str, action_space: spaces.Space | None = None, **description: Any) -> Any:
        """Make a Minari dataset on this machine, one episode for each stretch between episode ends.

        Args:
            dataset_id: "[namespace/]name-v0", not taken yet.
            action_space: default: whole numbers are Discrete(max + 1), all else is an unbounded Box.
            **description: further arguments of ``minari.create_dataset_from_buffers``, such as ``env``, ``author``.

        Returns:
            The ``minari.MinariDataset``.

        Raises:
            ImportError: minari is not installed.
            ValueError: there are no actions, or minari refuses the dataset.
        """
        return write_minari(self._arrays(), dataset_id, action_space, **description)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one ``.npz`` file (arrays plus a JSON header, no pickle), atomically. Returns the path written."""
        return write_log(path, self._arrays(), self._space_inferred)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a trajectory file, a damaged one, or one of another schema version.
        """
        stored = stored_log(path)
        try:
            return cls.of_arrays(stored.arrays)._with_space_inferred(stored.space_inferred)
        except Exception as error:
            raise ValueError(f"{path} is not a trajectory file that can be read: {error}") from error

    def _arrays(self) -> LoggedArrays:
        return LoggedArrays(**{name: getattr(self, name) for name in _ARGUMENTS})


_ARRAYS = tuple(f.name for f in fields(Trajectory))[:7]
_ARGUMENTS = tuple(f.name for f in fields(Trajectory) if f.init)
