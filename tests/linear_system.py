"""A linear system, x' = x MOVES + a PUSH with reward PRICE (x, a), its policy, and logs of it."""

import numpy as np
from gymnasium import spaces

import icrl_gym as icrl

GAMMA = 0.97
MOVES = np.array([[0.99, 0.1], [-0.1, 0.95]])
PUSH, PRICE = np.array([0.0, 0.05]), np.array([1.0, -0.5, 0.2])
ACTIONS = spaces.Box(-9.0, 9.0, (1,), np.float64)


def law(x):
    """The deterministic policy, (B, 1)."""
    return 0.3 * x[:, :1] - 0.2 * x[:, 1:]


class Deterministic:
    """An actor without chance."""

    num_noise = 1

    def actions(self, features_BD, noise_BU):
        return law(features_BD)

    def noise_behind(self, features_BD, actions, noise_BU):
        return noise_BU


class Noisy(Deterministic):
    """The policy with uniform noise of width 1."""

    def actions(self, features_BD, noise_BU):
        return law(features_BD) + noise_BU - 0.5


def linear_log(length=400, seed=0, wall=np.inf, reward_noise=0.0, limit=25, width=1.0, policy=None):
    """The policy with noise of a width; episodes of at most so many steps from random starts."""
    generator = np.random.default_rng(seed)
    rows, x, age = [], generator.uniform(-1, 1, 2), 0
    for _ in range(length):
        action = law(x[None])[0] + width * generator.uniform(-0.5, 0.5, 1)
        following, age = x @ MOVES + action * PUSH, age + 1
        ends = following[0] > wall
        reward = 5.0 + following[1] if ends else PRICE @ np.concatenate([x, action])
        rows.append((x, action, reward + reward_noise * generator.normal(), following, ends, age == limit and not ends))
        if ends or age == limit:
            following, age = generator.uniform(-1, min(1, wall), 2), 0
        x = following
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return icrl.Trajectory(*columns, observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float64), policy=policy)


class Asked(Noisy):
    """The noisy policy at features of a log."""

    def __init__(self, prompt):
        self.inverse = prompt.feature_map.inverse

    def actions(self, features_BD, noise_BU):
        return super().actions(self.inverse(features_BD), noise_BU)

    def noise_behind(self, features_BD, actions, noise_BU):
        return (actions - law(self.inverse(features_BD)) + 0.5).clip(1e-9, 1 - 1e-9)


def true_values(states_QD, gamma=GAMMA):
    """Values of the policy without noise and without a wall: linear in the state."""
    gains = np.array([0.3, -0.2])  # of `law`
    closed = MOVES + np.outer(gains, PUSH)
    return states_QD @ np.linalg.solve(np.eye(2) - gamma * closed, PRICE[:2] + PRICE[2] * gains)
