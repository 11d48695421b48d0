"""The policies whose values are estimated from longer and longer contexts, and how their agents are trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from icrl_gym.benchmark.cells import Task
from icrl_gym.rivals.critic_training import run_folder
from icrl_gym.rivals.recipes import Recipe, find_recipes

LARGE_BODIES = ("Ant-v5", "Humanoid-v5")  # simulated slowly: fewer states and rollouts
ON_LARGE_BODIES = (32, 6)  # states, rollouts
MORE_ROLLOUTS = {"HalfCheetah-v5": 4}  # times as many: with 12 the truth's noise is .71 of its spread


@dataclass(frozen=True)
class Subject:
    """A policy of the curve.

    Attributes:
        recipe: how its agent is trained; its last snapshot is the policy, whose critic is the rival.
        num_queries: states on the policy's path that are scored.
        num_rollouts: simulated continuations of each.
    """

    recipe: Recipe
    num_queries: int
    num_rollouts: int

    @property
    def env(self) -> str:
        """Id of the environment."""
        return self.recipe.env

    @property
    def num_steps(self) -> int:
        """Environment steps that the critic was trained with."""
        return self.recipe.snapshots[-1]

    @property
    def task(self) -> Task:
        """The policy as a task of the benchmark."""
        snapshot = run_folder(self.recipe, 0, Path()) / f"steps{self.num_steps}.zip"
        return Task(self.env, snapshot.as_posix(), gamma=self.recipe.gamma)


def _after(num_steps: int, env: str) -> Recipe:
    """The first recipe of an environment, ended after so many steps."""
    return replace(find_recipes((env,))[0], snapshots=(num_steps,))


_HALF_CHEETAH = _after(60_000, "HalfCheetah-v5")
TEST: tuple[Recipe, ...] = (
    *(_after(60_000, env) for env in ("LunarLander-v3", "BipedalWalker-v3", "Hopper-v5", "Walker2d-v5")),
    _HALF_CHEETAH,
    *(replace(_HALF_CHEETAH, env=env) for env in LARGE_BODIES),
)
DEVELOPMENT: tuple[Recipe, ...] = (
    _after(30_000, "CartPole-v1"),
    _after(60_000, "Acrobot-v1"),
    _after(30_000, "Pendulum-v1"),
    _after(20_000, "MountainCarContinuous-v0"),
    _after(20_000, "InvertedPendulum-v5"),
    _after(60_000, "Reacher-v5"),
)


def subjects(development: bool, envs: Iterable[str], num_queries: int, num_rollouts: int) -> tuple[Subject, ...]:
    """The policies of one of the two sets, in its order.

    Args:
        development: the set that a design may be chosen on, instead of the test set.
        envs: ids of environments in the set; none means all of it.
        num_queries: states of each; large bodies have at most 32.
        num_rollouts: continuations of each state; large bodies have at most 6, HalfCheetah has four times as many.

    Raises:
        ValueError: an environment is not in the set, or a number is too small.
    """
    for name, number in (("num_queries", num_queries), ("num_rollouts", num_rollouts)):
        if number < 2:
            raise ValueError(f"{name} must be at least 2, got {number}")
    recipes, wanted = DEVELOPMENT if development else TEST, tuple(envs)
    known = [recipe.env for recipe in recipes]
    unknown = [env for env in wanted if env not in known]
    if unknown:
        which = "development" if development else "test"
        raise ValueError(f"envs: {', '.join(unknown)} not among the {which} environments {', '.join(known)}")
    return tuple(
        Subject(recipe, *_budget(recipe.env, num_queries, num_rollouts))
        for recipe in recipes
        if not wanted or recipe.env in wanted
    )


def _budget(env: str, num_queries: int, num_rollouts: int) -> tuple[int, int]:
    if env not in LARGE_BODIES:
        return num_queries, num_rollouts * MORE_ROLLOUTS.get(env, 1)
    return min(num_queries, ON_LARGE_BODIES[0]), min(num_rollouts, ON_LARGE_BODIES[1])
