"""Running a policy in many simulators in lockstep: one batched policy call per step, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from icrl_gym.acting.policies import ActingPolicy
from icrl_gym.ground_truth.simulators import Factory, SavedState, Simulator
from icrl_gym.observations import Observations, map_leaves, stack

MAX_DRAWN_STEPS = 2_000  # per episode of the query draw, for environments that have no time limit or a very long one


@dataclass(frozen=True, eq=False)
class Queries:
    """States drawn uniformly from the on-policy steps of independent episodes.

    Attributes:
        observations: the Q raw observations.
        saved_states: the simulator's state at each query; empty where the simulator cannot be copied.
        policy_state: the policy's state before it acts at each query (batch Q), or None.
        histories: for recurrent policies, the observations from each episode's start up to the query, (T_q,) + shape
            each; else empty.
        episodes: (Q,) index of the episode each query was drawn from.
        times: (Q,) step of that episode.
        runs: the episodes the queries were drawn from.
        num_cut: number of episodes cut at ``MAX_DRAWN_STEPS``.
    """

    observations: Observations
    saved_states: tuple[SavedState, ...]
    policy_state: Any
    histories: tuple[Observations, ...]
    episodes: np.ndarray
    times: np.ndarray
    runs: Runs
    num_cut: int

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, eq=False)
class Continuations:
    """Returns of N continuations, and how each ended.

    Attributes:
        returns: (N,) discounted returns, float64.
        tail_weights: (N,) gamma^k, the weight of what lies beyond the last step; 0 where the episode terminated.
        at_border: (N,) bool, stopped where the environment itself truncated the episode (time limits are stripped).
        num_steps: environment steps taken in all.
    """

    returns: np.ndarray
    tail_weights: np.ndarray
    at_border: np.ndarray
    num_steps: int = 0

    @property
    def at_horizon(self) -> np.ndarray:
        """(N,) bool, still alive when the horizon was reached."""
        return (self.tail_weights > 0) & ~self.at_border


class Runs:
    """Episodes of one policy in E simulators, stepped together, with what happened in them."""

    def __init__(self, simulators: Sequence[Simulator], policy: ActingPolicy, seeds: Sequence[int]) -> None:
        self.simulators = simulators
        self.policy = policy
        first = [simulator.reset(seed) for simulator, seed in zip(simulators, seeds, strict=True)]
        self.observations: list[list[Any]] = [[_frozen(observation)] for observation in first]
        self.rewards: list[list[float]] = [[] for _ in simulators]
        self.terminated = np.zeros(len(simulators), dtype=bool)
        self.at_border = np.zeros(len(simulators), dtype=bool)  # truncated by the environment, not by a time limit
        self.live = np.arange(len(simulators))
        self.state = policy.initial_state(len(simulators))  # of the live ones
        self.final_states: dict[int, Any] = {}  # of those that stopped without terminating
        self.keep_observations = policy.recurrent

    def advance(self, time: int) -> None:
        """One step of every live episode; those that end are no longer live."""
        batch = stack([self.observations[index][-1] for index in self.live.tolist()])
        starts = np.full(len(self.live), time == 0)
        actions, self.state = self.policy.act_recurrent(batch, self.state, starts)
        going = np.ones(len(self.live), dtype=bool)
        for row, (index, action) in enumerate(zip(self.live.tolist(), actions, strict=True)):
            simulator = self.simulators[index]
            observation, reward, terminated, truncated = simulator.step(action)
            if self.keep_observations:
                self.observations[index].append(_frozen(observation))
            else:
                self.observations[index][-1] = observation
            self.rewards[index].append(reward)
            self.terminated[index] = terminated
            self.at_border[index] = truncated and not terminated and not simulator.stopped_by_time_limit
            going[row] = not (terminated or truncated)
        self.retire(~going)

    def retire(self, rows: np.ndarray) -> None:
        """Take these rows of the live episodes out, keeping the policy's state of each."""
        for row in np.flatnonzero(rows):
            self.final_states[int(self.live[row])] = self.policy.take_state(self.state, np.array([row]))
        self.live = self.live[~rows]
        self.state = self.policy.take_state(self.state, ~rows)


def draw_queries(
    factory: Factory,
    strategy: str,
    policy: ActingPolicy,
    num_queries: int,
    seed: np.random.SeedSequence,
    *,
    starts_only: bool = False,
) -> Queries:
    """Run ``num_queries`` episodes and draw as many of their steps, each step of each episode being as likely.

    The steps are drawn while the episodes run (reservoir sampling), so only a few moments are ever held. With
    ``starts_only`` the start of each episode is drawn, and the episodes run no further than the simulator needs.
    """
    environment_seed, reservoir_seed = seed.spawn(2)
    simulators = [Simulator(factory, strategy) for _ in range(num_queries)]
    runs = Runs(simulators, policy, [int(s) for s in environment_seed.generate_state(num_queries)])
    reservoir = _Reservoir(num_queries, np.random.default_rng(reservoir_seed), strategy)
    for time in range(MAX_DRAWN_STEPS):
        if not len(runs.live) or (starts_only and time and reservoir.can_copy):
            break
        if not (starts_only and time):
            reservoir.offer(runs, time)
        runs.advance(time)
    num_live = len(runs.live)
    runs.retire(np.ones(num_live, dtype=bool))
    return reservoir.queries(runs, 0 if starts_only else num_live)


class _Reservoir:
    """A uniform sample without replacement of a stream of unknown length (Vitter's algorithm R)."""

    def __init__(self, size: int, generator: np.random.Generator, strategy: str) -> None:
        self.size = size
        self.generator = generator
        self.can_copy = strategy != "independent"
        self.num_offered = 0
        self.slots: list[tuple[int, int, Any, Any, Any]] = []  # episode, time, observation, saved state, policy state

    def offer(self, runs: Runs, time: int) -> None:
        """Offer the present moment of every live episode."""
        for row, index in enumerate(runs.live.tolist()):
            slot = self._slot()
            if slot is None:
                continue
            simulator = runs.simulators[index]
            saved = simulator.save() if self.can_copy else None
            state = runs.policy.take_state(runs.state, np.array([row]))
            self.slots[slot] = (index, time, _frozen(simulator.observation), saved, state)

    def _slot(self) -> int | None:
        self.num_offered += 1
        if self.num_offered <= self.size:
            self.slots.append((0, 0, None, None, None))
            return len(self.slots) - 1
        drawn = int(self.generator.integers(self.num_offered))
        return drawn if drawn < self.size else None

    def queries(self, runs: Runs, num_cut: int) -> Queries:
        """The moments held, in the order of episode and time."""
        self.slots.sort(key=lambda slot: slot[:2])
        recurrent = runs.policy.recurrent
        episodes, times, observations, saved_states, states = zip(*self.slots, strict=True)
        histories = [stack(runs.observations[e][: t + 1]) for e, t in zip(episodes, times, strict=True) if recurrent]
        return Queries(
            stack(list(observations)),
            tuple(saved_states) if self.can_copy else (),
            join_states(runs.policy, list(states)),
            tuple(histories),
            np.array(episodes),
            np.array(times),
            runs,
            num_cut,
        )


def _frozen(observation: Any) -> Any:
    """A copy, for environments that write each observation into the same memory."""
    return map_leaves(np.array, observation)


def join_states(policy: ActingPolicy, states: list[Any]) -> Any:
    """Join the states of a recurrent policy, tuples of arrays with the batch on the second axis; None for others."""
    if not policy.recurrent:
        return None
    return tuple(np.concatenate(parts, axis=1) for parts in zip(*states, strict=True))


def continue_in_lockstep(
    envs: Sequence[gymnasium.Env],
    observations: Observations,
    policy: ActingPolicy,
    policy_state: Any,
    gamma: float,
    horizon: int,
    on_step: Callable[[int], None] | None = None,
) -> Continuations:
    """Run every environment on from where it is until its episode ends, ``horizon`` steps at most.

    An environment that truncates by itself is not stepped any more: nothing is said of what would follow.

    Args:
        envs: N environments, already started, without time limits.
        observations: the present observations, (N,) + shape.
        policy: the policy, called once per step for all environments that still run.
        policy_state: the policy's state, batch N, or None.
        gamma: discount.
        horizon: number of steps after which the rest is cut.
        on_step: called with the number of steps done.
    """
    running, live = list(envs), np.arange(len(envs))
    returns, tail_weights = np.zeros(len(envs)), np.zeros(len(envs))
    at_border, num_steps = np.zeros(len(envs), dtype=bool), 0
    for time in range(horizon):
        starts = np.zeros(len(live), dtype=bool)
        actions, policy_state = policy.act_recurrent(observations, policy_state, starts)
        steps = [env.step(action) for env, action in zip(running, actions, strict=True)]
        num_steps += len(steps)
        returns[live] += gamma**time * np.array([step[1] for step in steps], dtype=np.float64)
        going = np.array([not (step[2] or step[3]) for step in steps])
        stopped = live[[bool(step[3] and not step[2]) for step in steps]]
        at_border[stopped], tail_weights[stopped] = True, gamma ** (time + 1)
        live = live[going]
        if on_step is not None:
            on_step(time + 1)
        if not len(live):
            break
        observations = stack([step[0] for step, goes in zip(steps, going, strict=True) if goes])
        if not going.all():
            running = [env for env, goes in zip(running, going, strict=True) if goes]
            policy_state = policy.take_state(policy_state, going)
    tail_weights[live] = gamma**horizon
    return Continuations(returns, tail_weights, at_border, num_steps)


def realised_outcomes(queries: Queries, gamma: float, horizon: int) -> Continuations:
    """One return per query: that of the very episode it was drawn from, run on beyond its time limit.

    For simulators that cannot be copied. Steps on the episodes' own environments.
    """
    runs = queries.runs
    returns, weights, at_border = np.zeros(len(runs.simulators)), runs.at_border.astype(float), runs.at_border.copy()
    stopped = np.flatnonzero(~(runs.terminated | at_border)).tolist()
    if stopped:
        beyond = continue_in_lockstep(
            [runs.simulators[index].lift_time_limit() for index in stopped],
            stack([runs.observations[index][-1] for index in stopped]),
            runs.policy,
            join_states(runs.policy, [runs.final_states[index] for index in stopped]),
            gamma,
            horizon,
        )
        returns[stopped], weights[stopped], at_border[stopped] = beyond.returns, beyond.tail_weights, beyond.at_border
    pairs = list(zip(queries.episodes, queries.times, strict=True))
    rewards = [np.array(runs.rewards[episode][time:]) for episode, time in pairs]
    discounts = [gamma ** np.arange(len(part) + 1) for part in rewards]
    remaining = np.array([discount[-1] for discount in discounts])
    within = np.array([part @ discount[:-1] for part, discount in zip(rewards, discounts, strict=True)])
    episodes = queries.episodes
    return Continuations(within + remaining * returns[episodes], remaining * weights[episodes], at_border[episodes])
