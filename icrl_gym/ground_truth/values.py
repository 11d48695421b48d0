"""The truth that estimates are scored against: Monte Carlo returns from copies of the simulator, and exact solves.

V^pi(s) = E[sum_t gamma^t R_{t+1} | s], infinite horizon: termination ends the sum, a time limit does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import numpy as np

from icrl_gym.acting.environments import EnvironmentLike, environment_identity, make_environment
from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.ground_truth.rollouts import (
    MAX_DRAWN_STEPS,
    Continuations,
    Queries,
    continue_in_lockstep,
    draw_queries,
    realised_outcomes,
)
from icrl_gym.ground_truth.simulators import choose_strategy, environment_factory
from icrl_gym.ground_truth.transitions import TransitionTable
from icrl_gym.observations import Observations, take
from icrl_gym.values import Estimand, ValueEstimates, check_gamma

Progress = Callable[[int, int], None]


def monte_carlo_values(
    env_or_id: EnvironmentLike,
    policy: Any,
    *,
    num_queries: int = 64,
    num_rollouts: int = 32,
    gamma: float = 0.99,
    states: Literal["visited", "start"] = "visited",
    seed: int | np.random.Generator = 0,
    deterministic: bool = False,
    tolerance: float = 1e-3,
    max_copies: int = 1024,
    progress: Progress | None = None,
) -> ValueEstimates:
    """Values of a policy at states that it visits, by averaging returns from exact copies of the simulator.

    ``num_queries`` episodes are run as the policy would be run, time limit included, and as many of their steps are
    drawn, each step of each episode being as likely. From each, ``num_rollouts`` copies without time limit, each with
    its own noise, go on until they terminate or gamma^H <= ``tolerance``; one still alive then gets the tail gamma^H
    mean(V), mean(V) being that of the queries, and a note says how many.

    A copy keeps all of the simulator's state. Where the observation hides a part of it, such as the dealer's second
    card in Blackjack-v1, the values are those of states with that part, which scatter around the values of what is seen
    by more than the standard errors say; `icrl_envs.late_hole_card` shows how a wrapper mends that.

    An environment that truncates by itself, without Gymnasium's `TimeLimit`, is not stepped beyond: it may have nothing
    more to give. A copy that stops so after t steps gets the tail gamma^t mean(V), and a note says how many did. This
    is so for ``max_steps`` in MiniGrid; states close to such a limit have values drawn towards the mean, which is also
    what can be known of them.

    Args:
        env_or_id: an id, a specification, or an environment (which is copied, never stepped).
        policy: anything `as_policy` accepts.
        num_queries: Q.
        num_rollouts: copies per query, at least 2.
        gamma: discount in [0, 1).
        states: "start" takes the states that ``num_queries`` episodes start in instead, one of each.
        seed: the same seed gives the same bytes.
        deterministic: let SB3 models and tables take their most likely action.
        tolerance: weight below which the future is cut, in (0, 1).
        max_copies: number of copies that exist at once.
        progress: called as ``progress(done, total)``.

    Returns:
        Values, standard errors (that of the mean of the rollouts) and notes. Where the simulator cannot be copied each
        value is the one return of its own episode, the standard error is the spread of those returns over all queries
        (which is too large rather than too small on average), and a note says so.

    Raises:
        ValueError, TypeError: an argument is out of range or does not fit; see `make_environment` and `as_policy`.
    """
    _check_sizes(num_queries=(num_queries, 1), num_rollouts=(num_rollouts, 2), max_copies=(max_copies, 1))
    if states not in ("visited", "start"):
        raise ValueError(f'states must be "visited" or "start", got {states!r}')
    horizon = rollout_horizon(gamma, tolerance)
    factory = environment_factory(env_or_id)
    env = make_environment(env_or_id)
    draw_seed, copy_seed, policy_seed, check_seed = _seeds(seed)
    actor = _actor(policy, env, deterministic, policy_seed)
    strategy = choose_strategy(factory, _integer(check_seed))
    queries = draw_queries(factory, strategy, actor, num_queries, draw_seed, starts_only=states == "start")
    if strategy == "independent":
        outcomes, num_rollouts = realised_outcomes(queries, gamma, horizon), 1
    else:
        outcomes = _roll_out(queries, actor, num_rollouts, gamma, horizon, copy_seed, max_copies, progress)
    values, stderr = _average(outcomes, num_rollouts)
    estimand = Estimand(environment_identity(env), actor.identity, gamma)
    notes = _notes(queries, outcomes, strategy, num_rollouts, horizon)
    return ValueEstimates(values, queries.observations, estimand, stderr, notes=notes)


def query_histories(
    env: EnvironmentLike,
    policy: Any,
    *,
    num_queries: int = 64,
    seed: int = 0,
    deterministic: bool = False,
) -> tuple[Observations, ...]:
    """Observations that led a recurrent policy to each query.

    The queries are those that `monte_carlo_values` draws with the same arguments.

    Returns:
        Per query the observations from the start of its episode up to and including the query, (T,) + shape each; for
        `recurrent_critic_states`.

    Raises:
        ValueError: the policy is not recurrent.
    """
    factory = environment_factory(env)
    env = make_environment(env)
    draw_seed, _, policy_seed, _ = _seeds(seed)
    actor = _actor(policy, env, deterministic, policy_seed)
    if not actor.recurrent:
        raise ValueError(f"policy {actor.identity!r} is not recurrent: its values depend on no history")
    return draw_queries(factory, "independent", actor, num_queries, draw_seed).histories


def _seeds(seed: int | np.random.Generator) -> list[np.random.SeedSequence]:
    """Seeds of the query draw, of the copies, of the policy and of the check of the copies."""
    entropy = int(seed.integers(2**63)) if isinstance(seed, np.random.Generator) else int(seed)
    return np.random.SeedSequence(entropy).spawn(4)


def _integer(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1)[0])


def _actor(policy: Any, env: gymnasium.Env, deterministic: bool, seed: np.random.SeedSequence) -> ActingPolicy:
    return as_policy(policy, env.action_space, env.observation_space, deterministic=deterministic, seed=_integer(seed))


def rollout_horizon(gamma: float, tolerance: float) -> int:
    """The least H >= 1 with gamma^H <= tolerance.

    Raises:
        ValueError: ``gamma`` is not in [0, 1), or ``tolerance`` is not in (0, 1).
    """
    check_gamma(gamma)
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")
    return 1 if gamma == 0.0 else max(1, math.ceil(math.log(tolerance) / math.log(gamma) - 1e-9))


def _check_sizes(**sizes: tuple[int, int]) -> None:
    for name, (size, least) in sizes.items():
        if size != int(size) or size < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {size}")


def _roll_out(
    queries: Queries,
    policy: ActingPolicy,
    num_rollouts: int,
    gamma: float,
    horizon: int,
    seed: np.random.SeedSequence,
    max_copies: int,
    progress: Progress | None,
) -> Continuations:
    """Continue every query by ``num_rollouts`` copies, at most ``max_copies`` at a time; query-major."""
    seeds = seed.spawn(len(queries) * num_rollouts)
    owners = np.repeat(np.arange(len(queries)), num_rollouts)
    starts = range(0, len(owners), max_copies)
    parts = []
    for chunk, start in enumerate(starts):
        mine = slice(start, start + max_copies)

        def on_step(done: int, before: int = chunk * horizon) -> None:
            if progress is not None:
                progress(before + done, len(starts) * horizon)

        envs = [queries.saved_states[q].branch(s) for q, s in zip(owners[mine], seeds[mine], strict=True)]
        state = policy.take_state(queries.policy_state, owners[mine])
        seen = take(queries.observations, owners[mine])
        parts.append(continue_in_lockstep(envs, seen, policy, state, gamma, horizon, on_step))
        on_step(horizon)
    return Continuations(
        np.concatenate([part.returns for part in parts]),
        np.concatenate([part.tail_weights for part in parts]),
        np.concatenate([part.at_border for part in parts]),
        sum(part.num_steps for part in parts),
    )


def _average(outcomes: Continuations, num_rollouts: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors, (Q,) each; beyond the horizon lies mean(V), which solves its own equation."""
    mean_value = outcomes.returns.mean() / (1.0 - outcomes.tail_weights.mean())
    totals = (outcomes.returns + outcomes.tail_weights * mean_value).reshape(-1, num_rollouts)
    if num_rollouts == 1:
        spread = totals.std(ddof=1) if len(totals) > 1 else np.inf
        return totals[:, 0], np.full(len(totals), spread)
    return totals.mean(axis=1), totals.std(axis=1, ddof=1) / np.sqrt(num_rollouts)


def _notes(
    queries: Queries, outcomes: Continuations, strategy: str, num_rollouts: int, horizon: int
) -> tuple[str, ...]:
    if strategy == "independent":
        notes = ["the simulator cannot be copied: each value is the one return of its own episode, +- their spread"]
    else:
        notes = [f"{num_rollouts} simulator copies per query ({strategy}), horizon {horizon}"]
    total, num_alive, num_stopped = len(outcomes.returns), outcomes.at_horizon.sum(), outcomes.at_border.sum()
    if num_alive:
        notes.append(f"{num_alive} of {total} copies were alive at the horizon; each got the tail gamma^H mean(V)")
    if num_stopped:
        notes.append(
            f"{num_stopped} of {total} copies stopped after t steps where the environment itself truncates; "
            "each got the tail gamma^t mean(V)"
        )
    if queries.num_cut:
        notes.append(f"{queries.num_cut} episodes of the query draw were cut at {MAX_DRAWN_STEPS} steps")
    return tuple(notes)


def exact_values(
    env: EnvironmentLike, policy: Any, gamma: float = 0.99, *, deterministic: bool = False
) -> ValueEstimates:
    """Values of every non-terminal state in the order of the ids, by solving (I - gamma P_pi) v = r_pi.

    For environments that expose ``P`` as toy text does: ``P[state][action] = [(probability, next state, reward,
    terminated), ...]``. Which states are terminal: see `TransitionTable.terminal_states`. The observations are the
    state ids or, where the environment shows something else, what it shows in those states.

    Args:
        env: an id, a specification or an environment.
        policy: "random", an (S, A) table, an SB3 model, or an object with ``action_probabilities``.
        gamma: discount in [0, 1).
        deterministic: let SB3 models and tables take their most likely action.

    Raises:
        ValueError: no transition table, a wrapper that changes it, a policy without probabilities, gamma out of range.
    """
    check_gamma(gamma)
    env = make_environment(env)
    table = TransitionTable.from_environment(env)
    actor = as_policy(policy, env.action_space, env.observation_space, deterministic=deterministic, seed=0)
    values = table.solve(actor.action_probabilities(table.observations), gamma)
    listed = np.flatnonzero(~table.terminal_states())
    estimand = Estimand(environment_identity(env), actor.identity, gamma)
    notes = (f"exact: {len(listed)} non-terminal of {table.num_states} states",)
    return ValueEstimates(
        values[listed], take(table.observations, listed), estimand, np.zeros(len(listed)), notes=notes
    )
