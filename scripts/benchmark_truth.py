"""Measure how much faster copies in lockstep give the truth than one copy at a time.

    python scripts/benchmark_truth.py

For each case the same copies of one simulator are continued twice within one run: one after the other, by the plain
loop ``model.predict`` then ``env.step``, and in lockstep with one policy call per step for all that still run. The
figure is environment steps per second, the median of the repetitions, and the ratio of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro

from icrl_gym.acting.demo_policy import load_demo_policy
from icrl_gym.acting.policies import as_policy
from icrl_gym.ground_truth.rollouts import continue_in_lockstep
from icrl_gym.ground_truth.simulators import SavedState, Simulator, choose_strategy, environment_factory
from icrl_gym.observations import stack


@dataclass(frozen=True)
class Config:
    """Cases to measure, and their sizes."""

    num_copies: tuple[int, ...] = (16, 64, 256, 1024)
    """Copies that advance together."""
    horizon: int = 200
    """Steps each copy is continued for at most."""
    num_repetitions: int = 5
    """Repetitions of the lockstep; the loop over single copies takes a few thousand steps in all."""
    num_threads: int = 1
    """Threads of torch."""


def start(env_id: str) -> SavedState:
    """The start of an episode, ready to be copied."""
    factory = environment_factory(env_id)
    simulator = Simulator(factory, choose_strategy(factory))
    simulator.reset(seed=0)
    return simulator.save()


def copies(saved: SavedState, number: int, seed: int) -> list[gymnasium.Env]:
    """Copies with noise of their own."""
    return [saved.branch(part) for part in np.random.SeedSequence(seed).spawn(number)]


def one_at_a_time(saved: SavedState, predict: Callable[[Any], Any], horizon: int, least_steps: int) -> float:
    """Environment steps per second of the plain loop."""
    num_steps, seconds, seed = 0, 0.0, 0
    while num_steps < least_steps:
        env, observation, seed = copies(saved, 1, seed)[0], saved.observation, seed + 1
        began = time.perf_counter()
        for _ in range(horizon):
            observation, _, terminated, _, _ = env.step(predict(observation))
            num_steps += 1
            if terminated:
                break
        seconds += time.perf_counter() - began
    return num_steps / seconds


def in_lockstep(saved: SavedState, policy: Any, number: int, horizon: int, seed: int) -> float:
    """Environment steps per second of copies that advance together."""
    envs = copies(saved, number, seed)
    observations = stack([saved.observation] * number)
    began = time.perf_counter()
    outcomes = continue_in_lockstep(envs, observations, policy, policy.initial_state(number), 0.99, horizon)
    return outcomes.num_steps / (time.perf_counter() - began)


def measure(name: str, env_id: str, model: Any, config: Config) -> None:
    """Print one case."""
    saved = start(env_id)
    env = gymnasium.make(env_id)
    policy = as_policy("random" if model is None else model, env.action_space, env.observation_space, seed=0)
    env.action_space.seed(0)
    predict = (lambda _: env.action_space.sample()) if model is None else (lambda seen: model.predict(seen)[0])
    single = np.median([one_at_a_time(saved, predict, config.horizon, 1000) for _ in range(config.num_repetitions)])
    print(f"{name}: one at a time {single:,.0f} steps/s")
    for number in config.num_copies:
        rates = [in_lockstep(saved, policy, number, config.horizon, seed) for seed in range(config.num_repetitions)]
        print(
            f"  {number:5d} in lockstep {np.median(rates):>10,.0f} steps/s  x {np.median(rates) / single:.1f}",
            flush=True,
        )


def main(config: Config) -> None:
    """Measure a cheap simulator with a network, a dearer one with a network, and one without."""
    from stable_baselines3 import PPO

    torch.set_num_threads(config.num_threads)
    measure("CartPole-v1, SB3 MLP", "CartPole-v1", load_demo_policy(), config)
    measure("Acrobot-v1, SB3 MLP", "Acrobot-v1", PPO("MlpPolicy", "Acrobot-v1", seed=0, device="cpu"), config)
    measure("CartPole-v1, random", "CartPole-v1", None, config)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
