"""From named columns to one transition per row: ends, successors, and what has to be assumed about both.

What is not in a log is not made up where a value could depend on it: a row whose successor is not known, and which did
not terminate, is left out, and the row before it ends its stretch, its successor being known. Where an episode
terminated, what follows has no value, and the row's own state stands for its successor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.context.checked_fields import flags
from icrl_gym.context.logs.columns import FIELDS, ColumnMapping, Columns, checked_mapping
from icrl_gym.context.logs.logged_arrays import LoggedArrays

MOST_IDS = 64  # different whole numbers that are taken for discrete actions where they are written as decimals
LIKELY_LIMIT = 3  # episodes of the greatest length that make it look like a time limit


@dataclass(frozen=True, eq=False)
class _Rows:
    """The columns' entries for each of n rows; None where they say nothing."""

    observations: np.ndarray
    actions: np.ndarray | None
    rewards: np.ndarray
    next_observations: np.ndarray | None
    terminated: np.ndarray | None
    truncated: np.ndarray | None
    done: np.ndarray | None
    episode: np.ndarray | None
    importance_ratios: np.ndarray | None
    target_probability: np.ndarray | None
    behaviour_probability: np.ndarray | None


def assembled(
    columns: Columns,
    mapping: ColumnMapping | None = None,
    *,
    observation_space: spaces.Space | None = None,
    env_id: str | None = None,
    policy: str | None = None,
) -> LoggedArrays:
    """The transitions that columns hold, rows being in order of time, each episode's at least.

    Args:
        columns: as found.
        mapping: field -> column, where the names are not those of `FIELDS`.
        observation_space, env_id, policy: as of `Trajectory`.

    Raises:
        ValueError, TypeError: a field is missing, has gaps, or does not fit the others; the message names the log.
    """
    stated, source = checked_mapping(mapping), columns.source
    rows, about_actions = _plain(_Rows(**_found(columns, stated)), source)
    rows = _together(rows)
    terminated, truncated, about_ends = _flags(rows)
    ratios, policy = _ratios(rows, policy, source)
    log, about_successors = _with_successors(rows, terminated, truncated, ratios)
    if not len(log.rewards):
        raise ValueError(
            f"{source}: no row is left, as none terminated and no successor is known; map next_observations"
        )
    assumptions = (*about_actions, *about_ends, *about_successors)
    return replace(
        log, observation_space=observation_space, env_id=env_id, policy=policy, assumptions=assumptions,
        reading=columns.reading(stated),
    )  # fmt: skip


def _found(columns: Columns, stated: ColumnMapping) -> dict[str, Any]:
    """The fields by name, all of one length; None for those that no column holds."""
    source = columns.source
    found: dict[str, Any] = {name: columns.field(name, stated) for name in FIELDS}
    for name in ("observations", "rewards"):
        if found[name] is None:
            raise ValueError(
                f"{source} has no column of {name} among {columns.known()}; say which it is: "
                f"columns={{{name!r}: ...}} (--columns {name}=COLUMN)"
            )
    lengths = {name: len(values) for name, values in found.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{source}: all fields must have one length, got {lengths}")
    return found


def _plain(rows: _Rows, source: str) -> tuple[_Rows, tuple[str, ...]]:
    """Each field with the kind and the shape that gymnasium gives it, and what was assumed for it."""
    observations, successors = _shaped(rows.observations), rows.next_observations
    if successors is not None:
        successors = successors[:, None] if successors.ndim < observations.ndim else successors
        if successors.shape != observations.shape:
            raise ValueError(
                f"{source}: next_observations must have the shape of observations, {observations.shape}, got "
                f"{successors.shape}"
            )
    notes: tuple[str, ...] = ()
    actions = rows.actions
    if actions is not None:
        if actions.ndim == 1 and actions.dtype.kind == "f" and _are_ids(actions):
            notes = ("actions are whole numbers written as decimals: taken to be discrete",)
            actions = actions.astype(np.int64)
        actions = _shaped(actions)
    rewards = np.asarray(rows.rewards, dtype=np.float64)
    if rewards.ndim != 1:
        raise ValueError(f"{source}: rewards must be one number per row, got shape {rewards.shape}")
    plain = {n: _flag(getattr(rows, n), n, source) for n in ("terminated", "truncated", "done")}
    changed = replace(
        rows, observations=observations, next_observations=successors, actions=actions, rewards=rewards, **plain
    )
    return changed, notes


def _shaped(values: np.ndarray) -> np.ndarray:
    """Numbers (n, D), but ids (n,); a lone column of decimals is a vector of one, as Box spaces have it."""
    values = values.astype(np.int64) if values.dtype == bool else values
    return values[:, None] if values.ndim == 1 and values.dtype.kind == "f" else values


def _are_ids(actions: np.ndarray) -> bool:
    whole = bool((actions == np.floor(actions)).all()) and actions.min() >= 0
    return whole and len(np.unique(actions)) <= MOST_IDS


def _flag(values: np.ndarray | None, name: str, source: str) -> np.ndarray | None:
    if values is None:
        return None
    try:
        return flags(values, name)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {name} must be True, False, 1 or 0 in every row: {error}") from error


def _together(rows: _Rows) -> _Rows:
    """The rows of each episode side by side, episodes in the order in which they begin."""
    if rows.episode is None or not (np.diff(rows.episode) != 0).any():
        return rows
    _, first, which = np.unique(rows.episode, return_index=True, return_inverse=True)
    order = np.argsort(first[which], kind="stable")
    ordered: dict[str, Any] = {name: None if v is None else v[order] for name, v in vars(rows).items()}
    return _Rows(**ordered)


def _flags(rows: _Rows) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Which rows terminated, which were truncated, and what was assumed."""
    none = np.zeros(len(rows.rewards), dtype=bool)
    terminated, truncated, done = rows.terminated, rows.truncated, rows.done
    if terminated is not None and truncated is not None:
        return terminated, truncated & ~terminated, ()
    if done is not None and truncated is not None:
        return done & ~truncated, truncated, ()
    if done is not None and terminated is not None:
        return terminated, done & ~terminated, ()
    if terminated is not None or done is not None:
        ended = terminated if terminated is not None else done
        assert ended is not None
        name = "terminated" if terminated is not None else "done"
        notes = [f"no column says where a time limit cut an episode: every {name} is taken for a true ending"]
        limit = _likely_limit(ended, rows.episode)
        if limit:
            notes.append(
                f"{limit[0]} of {limit[1]} episodes that end do so after exactly {limit[2]} steps, none later: if that "
                "is a time limit, map it as truncated, or values are too low in magnitude"
            )
        return ended, none, tuple(notes)
    if truncated is not None:
        return none, truncated, ("no column says where an episode terminated: none is taken to have done so",)
    note = "no column says where episodes end: none is taken to terminate, values are those of an endless future"
    return none, none, (note,)


def _likely_limit(ended: np.ndarray, episode: np.ndarray | None) -> tuple[int, int, int] | None:
    """(episodes of the greatest length, episodes that end, that length) where it looks like a time limit."""
    border = ended.copy()
    if episode is not None:
        border[:-1] |= episode[1:] != episode[:-1]
    stops = np.flatnonzero(border)
    lengths = np.diff(np.concatenate([[-1], stops]))[ended[stops]]
    if not len(lengths):
        return None
    longest = int(lengths.max())
    count = int((lengths == longest).sum())
    return (count, len(lengths), longest) if count >= LIKELY_LIMIT and longest > 1 else None


def _ratios(rows: _Rows, policy: str | None, source: str) -> tuple[np.ndarray | None, str | None]:
    """Importance ratios (n,) and the policy that they are of, where another policy's values are asked for."""
    target, behaviour = rows.target_probability, rows.behaviour_probability
    if target is None:
        return rows.importance_ratios, policy
    if behaviour is None:
        raise ValueError(
            f"{source}: target_probability needs behaviour_probability beside it: how likely the logged action was "
            "under the policy that acted"
        )
    pi = _of_logged_action(target, rows.actions, f"{source}: target_probability")
    mu = _of_logged_action(behaviour, rows.actions, f"{source}: behaviour_probability")
    if (mu == 0).any():
        row = int(np.flatnonzero(mu == 0)[0])
        raise ValueError(f"{source}: behaviour_probability must be above 0, as the action was taken; row {row} has 0")
    return pi / mu, policy or "target"


def _of_logged_action(probability: np.ndarray, actions: np.ndarray | None, name: str) -> np.ndarray:
    """(n,) probability of the action in the log; of (n, A) probabilities its column is picked."""
    if not ((probability >= 0) & (probability <= 1 + 1e-6)).all():
        raise ValueError(f"{name} must lie in [0, 1] (densities of continuous actions: map importance_ratios instead)")
    if probability.ndim == 1:
        return probability.astype(np.float64)
    if actions is None or actions.ndim != 1 or actions.dtype.kind not in "iu" or actions.max() >= probability.shape[1]:
        raise ValueError(f"{name} with a column per action needs actions 0 to {probability.shape[1] - 1} in the log")
    return probability[np.arange(len(actions)), actions].astype(np.float64)


def _with_successors(
    rows: _Rows, terminated: np.ndarray, truncated: np.ndarray, ratios: np.ndarray | None
) -> tuple[LoggedArrays, tuple[str, ...]]:
    """The rows whose successors are known or without consequence, and what was assumed."""
    observations, stated = rows.observations, rows.next_observations
    ends = terminated | truncated
    known = _known(rows, ends)
    ends[-1] = True
    if rows.episode is not None:
        ends[:-1] |= rows.episode[1:] != rows.episode[:-1]
    if stated is not None:
        ends[:-1] |= known[:-1] & ~_same(stated[:-1], observations[1:])
    successors = np.concatenate([observations[1:], observations[-1:]])
    if stated is not None:
        successors = np.where(_beside(known, stated), stated, successors).astype(observations.dtype)
    standing_in, lost = ends & terminated & ~known, ends & ~terminated & ~known
    successors[standing_in] = observations[standing_in]
    followed = np.append(lost[1:], False)  # rows before a lost one end their stretch
    kept = ~lost
    log = LoggedArrays(
        observations[kept], None if rows.actions is None else rows.actions[kept], rows.rewards[kept], successors[kept],
        terminated[kept], truncated[kept], (ends | followed)[kept],
        importance_ratios=None if ratios is None else ratios[kept],
    )  # fmt: skip
    return log, _about_successors(rows, int(standing_in.sum()), int(lost.sum()))


def _known(rows: _Rows, ended: np.ndarray) -> np.ndarray:
    """(n,) whether a successor is stated. Starts of the next episode, which vector environments may log, are none."""
    stated = rows.next_observations
    if stated is None:
        return np.zeros(len(rows.rewards), dtype=bool)
    known = np.all(np.isfinite(stated.reshape(len(stated), -1).astype(np.float64)), axis=1)
    inside = np.flatnonzero(ended[:-1])
    if len(inside) and _same(stated[inside], rows.observations[inside + 1]).all():
        known[inside] = False
    return known


def _beside(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def _same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) which rows are equal, up to what a table written with fewer digits keeps."""
    near = np.asarray(np.isclose(first, second, rtol=1e-6, atol=1e-9))
    return np.all(near.reshape(len(near), -1), axis=1)


def _about_successors(rows: _Rows, num_standing_in: int, num_lost: int) -> tuple[str, ...]:
    notes = []
    begin = (
        "no column of next_observations" if rows.next_observations is None else "some next_observations are not known"
    )
    if all(column is None for column in (rows.next_observations, rows.episode, rows.done, rows.truncated)):
        notes.append(f"{begin}, of time limits or of episodes: a row is taken to lead to the next unless it terminated")
    if num_standing_in:
        notes.append(
            f"{begin}: where a row terminated ({num_standing_in}), its own state stands for the one it led to "
            "(its value counts as 0)"
        )
    if num_lost:
        notes.append(
            f"{begin}: rows in which a stretch stops without terminating ({num_lost}) are left out, as where they led "
            "is not known"
        )
    return tuple(notes)
