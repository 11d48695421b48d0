"""The table of families: which controlled systems there are, and how often.

| family | what it is |
|---|---|
| cartpole | CartPole's equations |
| pendulum | Pendulum's equations |
| acrobot | Acrobot's equations |
| mountain_car, mountain_car_continuous | MountainCar's equations |
| joints | one to four coupled second-order joints under a drawn outcome |
| hopper | a body on a springy leg above a floor under a drawn outcome |
| room | a point in a room with walls, goals and hazards |
| noisy_linear | linear systems with additive and multiplicative noise under a drawn outcome |
| tree | chains of capsules with motors under a drawn outcome; where `mujoco` is installed, and only on request |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from icrl_gym.pretraining.prior.controlled.acrobot import Acrobot
from icrl_gym.pretraining.prior.controlled.cartpole import CartPole
from icrl_gym.pretraining.prior.controlled.hopper import Hopper
from icrl_gym.pretraining.prior.controlled.joints import Joints
from icrl_gym.pretraining.prior.controlled.mountain_car import MountainCar
from icrl_gym.pretraining.prior.controlled.noisy_linear import NoisyLinear
from icrl_gym.pretraining.prior.controlled.pendulum import Pendulum
from icrl_gym.pretraining.prior.controlled.room import Room
from icrl_gym.pretraining.prior.controlled.shaped import ShapedSystem
from icrl_gym.pretraining.prior.controlled.systems import System
from icrl_gym.pretraining.prior.controlled.trees import Tree, is_installed

_TABLE: dict[str, tuple[float, Callable[[np.random.Generator], System]]] = {
    "cartpole": (1.0, CartPole.draw),
    "pendulum": (1.0, Pendulum.draw),
    "acrobot": (1.0, Acrobot.draw),
    "mountain_car": (0.5, partial(MountainCar.draw, continuous=False)),
    "mountain_car_continuous": (0.5, partial(MountainCar.draw, continuous=True)),
    "joints": (3.0, lambda rng: ShapedSystem.draw(Joints.draw(rng), rng)),
    "hopper": (1.5, lambda rng: ShapedSystem.draw(Hopper.draw(rng), rng)),
    "room": (1.0, Room.draw),
    "noisy_linear": (1.0, lambda rng: ShapedSystem.draw(NoisyLinear.draw(rng), rng)),
}
if is_installed():  # weight 0: slow, and draws without a stated family do not depend on what is installed
    _TABLE["tree"] = (0.0, lambda rng: ShapedSystem.draw(Tree.draw(rng), rng))
FAMILIES: tuple[str, ...] = tuple(_TABLE)
WEIGHTS: tuple[float, ...] = tuple(weight for weight, _ in _TABLE.values())
DRAWS: dict[str, Callable[[np.random.Generator], System]] = {name: draw for name, (_, draw) in _TABLE.items()}
