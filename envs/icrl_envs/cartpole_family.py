"""CartPole with random physics: a family of environments that look alike and behave differently."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


@dataclass(frozen=True)
class CartPolePhysics:
    """The numbers that are drawn for one member of the family; the defaults are those of CartPole-v1.

    Attributes:
        gravity: m/s^2.
        masscart: kg.
        masspole: kg.
        length: half the pole's length, m.
        force_mag: push of the cart, N.
    """

    gravity: float = 9.8
    masscart: float = 1.0
    masspole: float = 0.1
    length: float = 0.5
    force_mag: float = 10.0

    @classmethod
    def draw(cls, seed: int, spread: float) -> CartPolePhysics:
        """Each default times a factor that is log-uniform in [1/spread, spread]."""
        limit = np.log(spread)
        factors = np.exp(np.random.default_rng(seed).uniform(-limit, limit, len(fields(cls))))
        return cls(*(float(one.default * factor) for one, factor in zip(fields(cls), factors, strict=True)))


class CartPoleFamily(CartPoleEnv):
    """CartPole whose gravity, masses, length and force are drawn from `physics_seed`.

    ## Description
    The dynamics, thresholds and starting states of CartPole-v1; `gravity`, `masscart`, `masspole`, `length` and
    `force_mag` are each multiplied by a factor that is log-uniform in [1/spread, spread]. `spread=1` is CartPole-v1.

    ## Action Space
    `Discrete(2)`: push left, push right.

    ## Observation Space
    `Box(4)`: position, velocity, angle, angular velocity; the physics are not observed.

    ## Rewards
    1 for every step, the one that terminates included.

    ## Starting State
    All four numbers uniform in (-0.05, 0.05).

    ## Episode End
    Terminates beyond 12 degrees or 2.4 units from the centre. The registered id truncates after 500 steps.

    ## Arguments
    `physics_seed` (default 0), `spread` (2, at least 1), `render_mode`.

    ## Version History
    * v0: first version.
    """

    def __init__(self, physics_seed: int = 0, spread: float = 2.0, render_mode: str | None = None) -> None:
        if not 1.0 <= spread < np.inf:
            raise ValueError(f"spread must be at least 1 and finite, got {spread}")
        super().__init__(render_mode=render_mode)
        self.physics = CartPolePhysics.draw(physics_seed, spread)
        for one in fields(self.physics):
            setattr(self, one.name, getattr(self.physics, one.name))
        self.total_mass = self.masspole + self.masscart
        self.polemass_length = self.masspole * self.length
