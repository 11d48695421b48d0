"""Claim 12: on columns of state-action pairs linear attention is batch SARSA and softmax TD gives Q^pi."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.estimator import InContextEvaluator
from icrl_gym.reproduction import linear_attention
from icrl_gym.reproduction.claim import Claim, Finding, Outcome, Statement
from icrl_gym.reproduction.convergence import SLOPE_TOLERANCE, slope_with_interval
from icrl_gym.reproduction.empirical import EmpiricalModel
from icrl_gym.reproduction.judgement import above, exactly, together, within
from icrl_gym.reproduction.mrps import MRPBatch
from icrl_gym.reproduction.store import Store
from icrl_gym.scoring.figures import COLOURS

GAMMA, NUM_STATES, NUM_ACTIONS, NUM_FEATURES = 0.9, 5, 3, 4
NUM_PAIRS = NUM_STATES * NUM_ACTIONS
LENGTHS = (1000, 3000, 10000, 30000)
TEMPERATURE, DEEP, TOLERANCE = 10.0, 400, 1e-11
CONTEXTS = (100, 400, 1600)  # of the library's evaluator


@dataclass(frozen=True, eq=False)
class MDPBatch:
    """B finite decision processes with a policy each.

    Attributes:
        transition: (B, S, A, S).
        reward: (B, S, A).
        policy: (B, S, A).
    """

    transition: np.ndarray
    reward: np.ndarray
    policy: np.ndarray

    def action_values(self, gamma: float) -> np.ndarray:
        """Exact Q^pi (B, S, A), by way of the state values."""
        chain = np.einsum("bsa,bsat->bst", self.policy, self.transition)
        mean_reward = (self.policy * self.reward).sum(axis=2)
        values = np.linalg.solve(np.eye(self.reward.shape[1]) - gamma * chain, mean_reward[..., None])[..., 0]
        return self.reward + gamma * np.einsum("bsat,bt->bsa", self.transition, values)

    def pairs(self, features: np.ndarray) -> MRPBatch:
        """The Markov reward process of pairs s * A + a, with features (B, S * A, D)."""
        num_pairs = self.reward[0].size
        joint = self.transition[..., None] * self.policy[:, None, None]
        return MRPBatch(joint.reshape(-1, num_pairs, num_pairs), self.reward.reshape(-1, num_pairs), features)


def random_mdps(rng: np.random.Generator, num_mdps: int) -> MDPBatch:
    """Dirichlet(1) transitions, rewards U(-1, 1), policies Dirichlet(2)."""
    shape = (num_mdps, NUM_STATES, NUM_ACTIONS)
    return MDPBatch(
        rng.dirichlet(np.ones(NUM_STATES), size=shape),
        rng.uniform(-1, 1, shape),
        rng.dirichlet(2.0 * np.ones(NUM_ACTIONS), size=shape[:2]),
    )


def sarsa_errors(seed: int, num_mdps: int, num_transitions: int = 30, num_layers: int = 8) -> np.ndarray:
    """Linear attention on pairs against batch SARSA, relative, (2, B): random features, and one-hot against a table."""
    rng = np.random.default_rng([13, seed])
    mdps = random_mdps(rng, num_mdps)
    features = rng.uniform(-1, 1, (num_mdps, NUM_PAIRS, NUM_FEATURES))
    mrps = mdps.pairs(features)
    walk = mrps.walk(rng, num_transitions)
    rewards = mrps.rewards_of(walk)
    x = mrps.features_of(walk)
    found = _attention_values(x, rewards, num_layers)
    weights = linear_attention.linear_updates(
        x[:, :-1], GAMMA * x[:, 1:], rewards, np.eye(NUM_FEATURES), num_layers, method="td"
    )
    expected = np.einsum("bld,bd->bl", weights, x[:, -1])
    one_hot = np.eye(NUM_PAIRS)[walk]
    table = np.stack([tabular_sarsa(pairs, reward, num_layers) for pairs, reward in zip(walk, rewards, strict=True)])
    differences = (found - expected, _attention_values(one_hot, rewards, num_layers) - table)
    scales = np.abs(weights).max(axis=(1, 2)), np.abs(table).max(axis=1)
    return np.stack([np.abs(d).max(axis=1) / np.maximum(s, 1e-3) for d, s in zip(differences, scales, strict=True)])


def _attention_values(x: np.ndarray, rewards: np.ndarray, num_layers: int) -> np.ndarray:
    Z = linear_attention.prompt(x[:, :-1], GAMMA * x[:, 1:], rewards, x[:, -1])
    heads = linear_attention.td_heads(np.eye(x.shape[2]), rewards.shape[1])
    return -linear_attention.forward(Z, heads, num_layers)[..., -1]


def tabular_sarsa(pairs: np.ndarray, rewards: np.ndarray, num_layers: int) -> np.ndarray:
    """Batch SARSA with a table and step 1/n, in loops: the last pair's value after 0..L updates, (L + 1,)."""
    table = np.zeros(NUM_PAIRS)
    found = [0.0]
    for _ in range(num_layers):
        new = table.copy()
        for now, reward, later in zip(pairs[:-1], rewards, pairs[1:], strict=True):
            new[now] += (reward + GAMMA * table[later] - table[now]) / len(rewards)
        table = new
        found.append(float(table[pairs[-1]]))
    return np.array(found)


def softmax_errors(seed: int, num_mdps: int, lengths: Sequence[int]) -> np.ndarray:
    """Largest error of deep softmax TD over pairs, (B, lengths); contexts that miss a pair are left out."""
    rng = np.random.default_rng([14, seed])
    mdps = random_mdps(rng, num_mdps)
    mrps = mdps.pairs(np.zeros((num_mdps, NUM_PAIRS, 1)))
    truth = mdps.action_values(GAMMA).reshape(num_mdps, NUM_PAIRS)
    walk = mrps.walk(rng, max(lengths))
    rewards = mrps.rewards_of(walk)
    scores = np.broadcast_to(TEMPERATURE * np.eye(NUM_PAIRS), mrps.transition.shape)
    errors, complete = [], np.ones(num_mdps, dtype=bool)
    for n in lengths:
        model = EmpiricalModel.of(walk[:, : n + 1], rewards[:, :n], NUM_PAIRS)
        deep = model.layers(model.source_mass(scores), GAMMA, DEEP)[:, -1]
        errors.append(np.abs(deep - truth).max(axis=1))
        complete &= model.complete
    return np.stack(errors, axis=1)[complete]


def library(seed: int, num_mdps: int) -> dict[str, np.ndarray]:
    """`predict_q` on one context per length: ``squared`` error over pairs, relative to the truth's variance, and
    ``best`` share of states whose best action it names, each (B, contexts)."""
    rng = np.random.default_rng([15, seed])
    mdps = random_mdps(rng, num_mdps)
    walk = mdps.pairs(np.zeros((num_mdps, NUM_PAIRS, 1))).walk(rng, max(CONTEXTS))
    truth = mdps.action_values(GAMMA).reshape(num_mdps, NUM_PAIRS)
    squared, best = np.empty((num_mdps, len(CONTEXTS))), np.empty((num_mdps, len(CONTEXTS)))
    for i, (pairs, values) in enumerate(zip(walk, truth, strict=True)):
        for j, n in enumerate(CONTEXTS):
            found = _predicted(pairs[: n + 1], mdps.reward[i])
            squared[i, j] = np.mean((found - values) ** 2) / values.var()
            agree = found.reshape(NUM_STATES, -1).argmax(axis=1) == values.reshape(NUM_STATES, -1).argmax(axis=1)
            best[i, j] = agree.mean()
    return {"squared": squared, "best": best}


def _predicted(pairs: np.ndarray, reward: np.ndarray) -> np.ndarray:
    states, actions = np.divmod(pairs, NUM_ACTIONS)
    flags = np.zeros(len(pairs) - 1, dtype=bool)
    log = Trajectory(states[:-1], actions[:-1], reward[states[:-1], actions[:-1]], states[1:], flags, flags)
    every_state, every_action = np.divmod(np.arange(NUM_PAIRS), NUM_ACTIONS)
    return InContextEvaluator().fit(log, GAMMA).predict_q(every_state, every_action).values


CAPTION = (
    "Left: largest error of deep softmax TD on state-action columns (one-hot, tau = 10, 400 layers) against exact"
    " Q^pi; mean and middle 80 % of MDPs. Right: `predict_q` of the library as it comes, every MDP a dot."
)


def action_values(quick: bool, seeds: Sequence[int], device: str, store: Store) -> Outcome:
    """Claim 12."""
    num_mdps, lengths, num_logs = (40, LENGTHS[:3], 3) if quick else (200, LENGTHS, 10)
    sarsa = np.concatenate([sarsa_errors(seed, num_mdps) for seed in seeds], axis=1)
    floor = np.concatenate([softmax_errors(seed, num_mdps, lengths) for seed in seeds])
    pieces = [store.arrays(f"library-seed-{seed}", lambda seed=seed: library(seed, num_logs)) for seed in seeds]
    found = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    slope = slope_with_interval(lengths, floor)
    logs = np.log(found["squared"])
    falls = [
        Finding.mean(
            f"predict_q: log error at n = {a} less that at n = {b}",
            logs[:, j] - logs[:, j + 1],
        )
        for j, (a, b) in enumerate(pairwise(CONTEXTS))
    ]
    named = Finding.mean(f"predict_q: share of best actions named, n = {CONTEXTS[-1]}", found["best"][:, -1])
    findings = (
        Finding.largest("linear attention less batch SARSA, random features: largest relative difference", sarsa[0]),
        Finding.largest("linear attention less tabular SARSA, one-hot features: largest relative difference", sarsa[1]),
        slope,
        *(
            Finding.mean(f"predict_q, n = {n}: relative squared error", found["squared"][:, j])
            for j, n in enumerate(CONTEXTS)
        ),
        *falls,
        named,
    )
    statements = (
        Statement("Linear attention computes batch SARSA.", exactly(bool(sarsa.max() < TOLERANCE))),
        Statement(
            "Softmax TD gives Q^pi with an error of order n^-1/2.",
            within(slope, -0.5 - SLOPE_TOLERANCE, -0.5 + SLOPE_TOLERANCE),
        ),
        Statement("The error of `predict_q` falls from each length to the next.", together(map(above, falls))),
        Statement("It names the best action more often than chance.", above(named, 1.0 / NUM_ACTIONS)),
    )
    remarks = (
        "The block is ours after [LL26], whose printed form we had not at hand; its actor is not reproduced. Q^pi is"
        " that of the logged policy, on pairs that it takes; an open end costs its last transition, whose next action"
        " is unknown. Errors of `predict_q` are compared as logarithms since a first quick run, whose squared errors at"
        " n = 100 were dominated by a few MDPs."
    )
    figure = _figure(lengths, floor, found["squared"])
    return Outcome(statements, findings, remarks=remarks, figure=figure, caption=CAPTION)


def _figure(lengths: Sequence[int], floor: np.ndarray, squared: np.ndarray) -> Figure:
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    mean = floor.mean(axis=0)
    left.loglog(lengths, mean, color=COLOURS[0], marker="o", label=f"mean of {len(floor)} MDPs")
    left.fill_between(lengths, *np.percentile(floor, [10, 90], axis=0), color=COLOURS[0], alpha=0.2, linewidth=0)
    left.loglog(lengths, mean[0] * np.sqrt(lengths[0] / np.array(lengths)), "k--", linewidth=0.8, label="slope -1/2")
    left.set(xlabel="transitions in the context, n", ylabel="largest error over pairs", title="Softmax TD on pairs")
    left.legend(fontsize="small")
    for j, n in enumerate(CONTEXTS):
        right.scatter(np.full(len(squared), n), squared[:, j], color=COLOURS[1], alpha=0.4, s=14, linewidths=0)
    right.loglog(CONTEXTS, squared.mean(axis=0), color=COLOURS[1], marker="s", label="mean")
    right.set(xlabel="transitions in the context, n", ylabel="squared error / variance of Q", title="predict_q")
    right.legend(fontsize="small")
    return figure


CLAIM = Claim(
    number=12,
    id="state-action",
    title="On state-action columns: SARSA, and Q^pi in context",
    statement=(
        "Linear attention on columns [phi(s, a); gamma phi(s', a'); R] computes batch SARSA. Weighted softmax TD on"
        " state-action columns gives Q^pi, with an error of order n^-1/2; `InContextEvaluator.predict_q` does so for"
        " any log."
    ),
    source="[LL26] for linear attention; softmax and `predict_q` are ours",
    measured=(
        "Random MDPs of 5 states and 3 actions, gamma = .9. Linear attention against batch SARSA with features, and"
        " against a table updated in loops; deep softmax TD against exact Q^pi; `predict_q` with default settings on"
        " logs of 100, 400 and 1,600 transitions."
    ),
    criterion=(
        f"Differences below {TOLERANCE:g}; the interval of the slope within -0.5 +- {SLOPE_TOLERANCE}; the error of"
        " `predict_q` falls from each length to the next, with intervals above zero, and it names the best action more"
        " often than chance, 1/3, with its interval."
    ),
    function=action_values,
    num_seeds=4,
    quick_seeds=4,
    least_seeds=4,
)
