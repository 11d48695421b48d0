"""The evaluator against what people use, on one log of CartPole-v1 under the policy that ships with the package."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import icrl_gym as icrl
from icrl_gym.acting.environments import make_environment
from icrl_gym.acting.sb3_models import algorithm_class
from icrl_gym.benchmark.resolution import resolved_error
from icrl_gym.benchmark.resources import measured
from icrl_gym.benchmark.scale.rows import CONSTRUCTED, EVALUATORS, FROM_LOG, TOLD, Measurement, Row
from icrl_gym.benchmark.truths import TRUTH_SEED, kept
from icrl_gym.context.returns import decayed_sums
from icrl_gym.rivals.recipes import find_recipes

ENV = "CartPole-v1"
NETWORKS = ("fitted_value_network", "fqe")
PPO, KERNEL_RIDGE = "PPO's critic", "kernel ridge on returns"
TRAINING_STEPS, TIMED_STEPS = 60_000, 4_096
FIRST_STEPS, MOST_STEPS = 500, 64_000  # of a network's training; doubled in between
STALLED = 0.98  # a doubling that leaves more than this share of the best error has not helped; two end the search
SELECTION_ROWS = 2_048  # of the log, on which kernel ridge's two settings are chosen
WARM_UP = 128
CUT_WEIGHT = 0.05  # of what a time limit or the log's end cut off, in a return that is still used


@dataclass(frozen=True)
class Shared:
    """What all rivals get."""

    log: icrl.Trajectory
    truth: icrl.ValueEstimates
    policy: Any


def make_shared(folder: Path, num_transitions: int, num_queries: int, num_rollouts: int) -> None:
    """Run the log and measure the truth, where the folder does not hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    model = icrl.load_demo_policy()
    if not _log_file(folder, num_transitions).exists():
        icrl.collect(ENV, model, num_transitions, seed=0).save(_log_file(folder, num_transitions))
    kept(
        folder / "truth.npz",
        lambda: icrl.monte_carlo_values(
            ENV, model, num_queries=num_queries, num_rollouts=num_rollouts, gamma=float(model.gamma), seed=TRUTH_SEED
        ),
    )


def _log_file(folder: Path, num_transitions: int) -> Path:
    return folder / f"log-n{num_transitions}.npz"


def rival_row(measurement: Measurement, folder: Path) -> Row:
    """Seconds and error of one of them; the reference is the generalist that is told the policy."""
    log = icrl.Trajectory.load(_log_file(folder, measurement.size))
    truth = kept(folder / "truth.npz", _no_truth)
    shared = Shared(log, truth, icrl.load_demo_policy())
    evaluate(replace(shared, log=log[:WARM_UP]), TOLD)
    start = time.perf_counter()
    ours = error(evaluate(shared, TOLD), truth)
    reference = time.perf_counter() - start
    return replace(_row(measurement, shared, ours), reference_seconds=reference)


def _no_truth() -> icrl.ValueEstimates:
    raise FileNotFoundError("the truth that the rivals share is missing: make_shared writes it")


def _row(measurement: Measurement, shared: Shared, ours: float) -> Row:
    name = measurement.method
    if name == PPO:
        return ppo_row(measurement, shared)
    if name in NETWORKS:
        return trained_row(measurement, shared, ours)
    call = kernel_ridge if name == KERNEL_RIDGE else evaluate
    values, spent = measured(lambda: call(shared, name))
    return Row(measurement, spent.seconds, spent.peak_memory, error=error(values, shared.truth))


def evaluate(shared: Shared, name: str, **options: Any) -> icrl.ValueEstimates:
    """Values at the truth's states by an estimator of the library."""
    registered = {TOLD: "generalist", FROM_LOG: "generalist_from_log", CONSTRUCTED: CONSTRUCTED}.get(name, name)
    told = None if name in EVALUATORS and name != TOLD else shared.policy
    estimator = icrl.make_estimator(registered, **options).fit(shared.log, shared.truth.estimand.gamma, policy=told)
    return estimator.predict(shared.truth.observations)


def error(values: icrl.ValueEstimates, truth: icrl.ValueEstimates) -> float:
    """RMSE / std without the truth's own noise, as far as that noise lets it be told: a goal that can be reached.

    Raises:
        ValueError: the truth has no spread beyond its noise.
    """
    found = icrl.score(values, truth)
    if not found.truth_std_corrected > 0:
        raise ValueError(f"num_rollouts: the truth at {found.n} states has no spread beyond its noise; take more")
    return resolved_error(found.rmse_over_std_corrected, found.noise_floor, found.truth_std_corrected, found.n)


@dataclass(frozen=True)
class Trained:
    """A network after so many steps."""

    num_steps: int
    error: float
    seconds: float


def trained_row(measurement: Measurement, shared: Shared, ours: float) -> Row:
    """A network trained from scratch for longer and longer, until it is as near as ours or does not come nearer."""

    def train(num_steps: int) -> Trained:
        start = time.perf_counter()
        values = evaluate(shared, measurement.method, num_steps=num_steps)
        seconds = time.perf_counter() - start
        return Trained(num_steps, error(values, shared.truth), seconds)

    found = longer_and_longer(train, ours)
    words = "reaches the generalist's error" if found.error <= ours else "does not come as near, its best"
    note = f"{found.num_steps:,} steps of Adam: {words}"
    return Row(measurement, found.seconds, error=found.error, note=note)


def longer_and_longer(train: Callable[[int], Trained], goal: float) -> Trained:
    """The first network at most as far off as the goal, or else the best before two doublings in a row did not help."""
    best: Trained | None = None
    num_steps, stalled = FIRST_STEPS, 0
    while num_steps <= MOST_STEPS and stalled < 2:
        found = train(num_steps)
        if found.error <= goal:
            return found
        stalled = 0 if best is None or found.error < STALLED * best.error else stalled + 1
        best = found if best is None or found.error < best.error else best
        num_steps *= 2
    assert best is not None
    return best


def kernel_ridge(shared: Shared, name: str) -> icrl.ValueEstimates:
    """Scikit-learn's kernel ridge on the discounted returns that the log shows to their end.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    del name
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.preprocessing import StandardScaler

    seen = finished_returns(shared.log, shared.truth.estimand.gamma)
    scale = StandardScaler().fit(seen.states_MD)
    inputs_MD, mean = np.asarray(scale.transform(seen.states_MD)), seen.returns_M.mean()
    spread = seen.returns_M.std() or 1.0
    targets_M = (seen.returns_M - mean) / spread
    some = np.random.default_rng(0).permutation(len(inputs_MD))[:SELECTION_ROWS]
    widths = [factor / inputs_MD.shape[1] for factor in (0.01, 0.1, 1.0, 10.0)]
    grid = {"alpha": [0.01, 0.1, 1.0, 10.0, 100.0], "gamma": widths}
    folds = GroupKFold(min(3, len(np.unique(seen.episodes_M[some]))))  # whole episodes: neighbours in time are alike
    search = GridSearchCV(KernelRidge(kernel="rbf"), grid, cv=folds)
    search.fit(inputs_MD[some], targets_M[some], groups=seen.episodes_M[some])
    model = KernelRidge(kernel="rbf", **search.best_params_).fit(inputs_MD, targets_M)
    values_Q = mean + spread * model.predict(scale.transform(shared.truth.observations))
    return icrl.ValueEstimates(np.asarray(values_Q, np.float64), shared.truth.observations, shared.truth.estimand)


@dataclass(frozen=True)
class Returns:
    """States (M, D), the discounted sums of rewards that follow them (M,), and numbers of their episodes (M,)."""

    states_MD: np.ndarray
    returns_M: np.ndarray
    episodes_M: np.ndarray


def finished_returns(log: icrl.Trajectory, gamma: float) -> Returns:
    """Returns where the log shows them to their end.

    That is where the episode terminates, or goes on for so long that what lies beyond weighs at most `CUT_WEIGHT`.

    Raises:
        ValueError: no return of the log is seen to its end.
    """
    going_N = 1.0 - log.episode_ends
    returns_N = decayed_sums(log.rewards, gamma * going_N)
    terminates_N = decayed_sums(log.terminated.astype(float), going_N) > 0
    beyond_N = gamma ** decayed_sums(np.ones(len(log)), going_N)
    seen_N = terminates_N | (beyond_N <= CUT_WEIGHT)
    if not seen_N.any():
        raise ValueError(f"log: none of its {len(log)} returns is seen to its end; a longer one is needed")
    episodes_N = np.cumsum(log.episode_ends) - log.episode_ends
    return Returns(np.asarray(log.observations, np.float64)[seen_N], returns_N[seen_N], episodes_N[seen_N])


def ppo_row(measurement: Measurement, shared: Shared) -> Row:
    """The critic of the policy itself: seconds of its training, extrapolated from a short part of it."""
    recipe = find_recipes((ENV,), ("PPO",))[0]
    vector = type(shared.policy.get_env())  # Stable-Baselines3's own, without importing it here
    env = vector([lambda: make_environment(recipe.spec)] * recipe.num_envs)
    model: Any = algorithm_class("PPO")(recipe.policy_class, env, seed=0, device="cpu", **recipe.options)
    model.learn(1)  # one rollout and its update
    start, before = time.perf_counter(), model.num_timesteps
    model.learn(TIMED_STEPS, reset_num_timesteps=False)
    per_step = (time.perf_counter() - start) / (model.num_timesteps - before)
    critic = icrl.sb3_critic_values(shared.policy, shared.truth.observations, env=shared.truth.estimand.env)
    note = (
        f"{TRAINING_STEPS:,} steps of training, extrapolated from {model.num_timesteps - before:,} in "
        f"{recipe.num_envs} environments; the error is that of the shipped policy's critic after "
        f"{shared.policy.num_timesteps:,}"
    )
    return Row(measurement, per_step * TRAINING_STEPS, error=error(critic, shared.truth), note=note)
