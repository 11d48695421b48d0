"""A log in parts, read one part at a time: what the parts hold, and the thinned context that is held in memory.

A log within the budget is held whole. Of a longer one blocks of transitions are held, evenly over all of it, so that
the choice does not depend on where the log was cut. Whatever is read off a context (feature
statistics, relevance, keys, the statistics of the error bars, the world) is then read off these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.asked import asked_policy, has_acted
from icrl_gym.context.features import FeatureFunction, FeatureMap
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.runs import Progress

BLOCK = 512  # transitions in a row that are held, at most
FEWEST_BLOCKS = 16
READING, HOLDING = "reading the parts", "taking the held context"  # what progress is told

Part = Trajectory | str | os.PathLike[str] | Callable[[], Trajectory]
# ``workers(function, calls)`` runs the calls anywhere, and yields what they return in any order.
Workers = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]
DISTRIBUTED: Literal["torch.distributed"] = "torch.distributed"
Where = Workers | Literal["torch.distributed"] | None


@dataclass(frozen=True)
class Outline:
    """What has to be known of a part before it is let go of.

    Attributes:
        num_transitions: how many it holds.
        rewards: its least and its largest reward.
        weighted: whether it holds importance ratios.
        acts: whether it holds actions.
        observation_space, env_id, policy: as in `Trajectory`.
    """

    num_transitions: int
    rewards: tuple[float, float]
    weighted: bool
    acts: bool
    observation_space: spaces.Space
    env_id: str | None
    policy: str | None

    @classmethod
    def of(cls, part: Trajectory) -> Outline:
        """The outline of a part that was loaded."""
        return cls(
            len(part), (float(part.rewards.min()), float(part.rewards.max())), part.importance_ratios is not None,
            part.actions is not None, part.observation_space, part.env_id, part.policy,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class LogInParts:
    """A log that is too long for memory.

    Attributes:
        parts: where its parts are, in any order.
        num_transitions: in all parts.
        rewards: the least and the largest of all rewards.
        held: the context that is held.
    """

    parts: tuple[Part, ...]
    num_transitions: int
    rewards: tuple[float, float]
    held: Trajectory

    @classmethod
    def read(cls, parts: Sequence[Part], held: int, where: Where, progress: Progress) -> LogInParts:
        """Read all parts once, and those of the held context again.

        Args:
            parts: trajectories, paths of trajectory files, or functions that return one.
            held: at most so many transitions are held.
            where: the workers that read them; this process unless they are given.
            progress: told how many parts were read.

        Raises:
            TypeError: ``parts`` is no sequence of such parts.
            ValueError: there is none, ``held`` is no positive int, or parts differ in what all must share.
        """
        parts = _checked_parts(parts)
        if isinstance(held, bool) or not isinstance(held, (int, np.integer)) or held < 1:
            raise ValueError(f"held must be an int of at least 1, got {held!r}")
        workers = here if where is None or where == DISTRIBUTED else where
        outlines = _in_order(workers, _outline, list(enumerate(parts)), READING, progress)
        check_alike(outlines)
        counts = [outline.num_transitions for outline in outlines]
        calls = [
            (number, parts[number], counts[number], rows)
            for number, rows in enumerate(_held_rows(counts, int(held)))
            if rows
        ]
        pieces = _in_order(workers, _pieces, calls, HOLDING, progress)
        joined = reduce(Trajectory.append, [piece for of_part in pieces for piece in of_part])
        lowest, highest = zip(*(outline.rewards for outline in outlines), strict=True)
        return cls(parts, sum(counts), (min(lowest), max(highest)), joined)

    def prompt(self, gamma: float, features: FeatureFunction | None) -> Prompt:
        """That of the held context, which knows the least and the largest of all rewards.

        Args:
            gamma: discount in [0, 1).
            features: own features instead of the space's default.
        """
        feature_map = FeatureMap(self.held.observation_space, features).fit(self.held.observations)
        return replace(Prompt.from_trajectory(self.held, gamma, feature_map), log_rewards=self.rewards)

    def asked(self, policy: Any) -> tuple[AskedPolicy | None, tuple[str, ...]]:
        """The policy as it can be asked, and notes; see `asked_policy`.

        Raises:
            ValueError: it is not known to have acted in this log.
        """
        asked, notes = asked_policy(policy, self.held)
        if asked is not None and not has_acted(asked, self.held):
            raise ValueError(
                f"policy {asked.identity!r} is not known to have acted in this log (policy={self.held.policy!r}), and "
                "values from parts are those of the policy that did: give fit a part of the log, or name its policy"
            )
        return asked, notes

    @property
    def is_held(self) -> bool:
        """Whether the whole log is held."""
        return len(self.held) == self.num_transitions


def here(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """The workers that are this process alone."""
    return (function(*call) for call in calls)


def loaded(part: Part, number: int) -> Trajectory:
    """The trajectory of a part.

    Raises:
        TypeError: it is none; the message names the part's number.
        FileNotFoundError, ValueError: see `Trajectory.load`.
    """
    if isinstance(part, (str, os.PathLike)):
        return Trajectory.load(part)
    found = part if isinstance(part, Trajectory) else part()
    if not isinstance(found, Trajectory):
        raise TypeError(f"parts[{number}] must return a Trajectory, got {type(found).__name__}")
    return found


def check_finished(num_done: int, num_calls: int) -> None:
    """Raise ChildProcessError where workers were lost for good, so that sums would lack transitions."""
    if num_done < num_calls:
        raise ChildProcessError(f"workers: {num_calls - num_done} of {num_calls} calls lost their workers for good")


def _checked_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    if isinstance(parts, (str, os.PathLike, Trajectory)) or not isinstance(parts, Sequence):
        raise TypeError(f"parts must be a sequence of trajectories, paths or functions, got {type(parts).__name__}")
    for number, part in enumerate(parts):
        if not (isinstance(part, (Trajectory, str, os.PathLike)) or callable(part)):
            expected = "a Trajectory, the path of one, or a function that returns one"
            raise TypeError(f"parts[{number}] must be {expected}, got {type(part).__name__}")
    if not parts:
        raise ValueError("parts must hold at least one part, got none")
    return tuple(parts)


def check_alike(outlines: Sequence[Outline]) -> None:
    """Raise ValueError for parts that are not of one log."""
    shared: dict[str, Any] = {}
    for number, outline in enumerate(outlines):
        for name in ("observation_space", "env_id", "policy", "weighted", "acts"):
            mine = getattr(outline, name)
            if mine is None:
                continue
            if shared.setdefault(name, mine) != mine:
                words = {"weighted": "importance ratios", "acts": "actions"}.get(name, name)
                raise ValueError(
                    f"parts[{number}]: {words} must be as in the parts before, got {mine!r} against {shared[name]!r}; "
                    "state the same for every part when it is made"
                )


def _held_rows(counts: Sequence[int], held: int) -> list[list[slice]]:
    """Slices of every part that are held, where one block or several fall into it."""
    ends = np.cumsum(counts)
    found: list[list[slice]] = [[] for _ in counts]
    for start, stop in _blocks(int(ends[-1]), held):
        first, last = np.searchsorted(ends, (start, stop - 1), side="right")
        for number in range(first, last + 1):
            before = int(ends[number]) - counts[number]
            found[number].append(slice(max(start - before, 0), min(stop - before, counts[number])))
    return found


def _blocks(total: int, held: int) -> list[tuple[int, int]]:
    """First and last but one of the rows of each block, in the log as a whole."""
    if total <= held:
        return [(0, total)]
    length = min(BLOCK, max(1, held // FEWEST_BLOCKS))
    count = held // length
    starts = np.arange(count) * (total - length) // max(1, count - 1)
    return [(int(start), int(start) + length) for start in starts]


def _in_order(
    workers: Workers, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], name: str, progress: Progress
) -> list[Any]:
    """What the calls return, in the order of the parts; each returns its number and a result."""
    found: dict[int, Any] = {}
    progress(name, 0, len(calls))
    for number, result in workers(function, calls):
        found[number] = result
        progress(name, len(found), len(calls))
    check_finished(len(found), len(calls))
    return [found[number] for number in sorted(found)]


def _outline(number: int, part: Part) -> tuple[int, Outline]:
    return number, Outline.of(loaded(part, number))


def _pieces(number: int, part: Part, count: int, rows: Sequence[slice]) -> tuple[int, list[Trajectory]]:
    trajectory = loaded(part, number)
    if len(trajectory) != count:
        raise ValueError(f"parts[{number}] changed while it was read: {len(trajectory)} transitions, before {count}")
    return number, [trajectory[stretch] for stretch in rows]
