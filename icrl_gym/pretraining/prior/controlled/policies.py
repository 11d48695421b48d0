"""Drawing policies: random ones, and hand-made controllers with noise."""

from __future__ import annotations

import hashlib

import numpy as np

from icrl_gym.pretraining.prior.controlled.controllers import Controller, GaussianController, SoftmaxController
from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.laws import LinearLaw, NearestLevel, NetworkLaw
from icrl_gym.pretraining.prior.controlled.systems import Law, System

# Of the policies where a family has a hand-made controller: those of known systems are good ones, and balance for long;
# those of synthetic systems head for random postures.
GUIDED_SHARE, GUIDED_SHARE_SYNTHETIC = 0.7, 0.5
PILOT_COPIES, PILOT_STEPS = 24, 60
LEAST_SCALE = 1e-3


def draw_policy(system: System, rng: np.random.Generator) -> Controller:
    """A random policy for the system's actions; observations are standardised by a run of uniform actions."""
    share = GUIDED_SHARE_SYNTHETIC if system.source == "synthetic" else GUIDED_SHARE
    guide = system.guide(rng) if chance(rng, share) else None
    actuation = system.actuation
    num_outputs = actuation.num_inputs if actuation.levels is None else len(actuation.levels)
    law, kind = (guide, "guided") if guide is not None else _draw_law(system, num_outputs, rng)
    digest = hashlib.sha256(rng.bytes(16)).hexdigest()[:8]
    if actuation.levels is None:
        return _draw_gaussian(law, actuation.high, f"gaussian-{kind}:{digest}", rng)
    if guide is not None:
        law, temperature = NearestLevel(guide, actuation.levels), log_uniform(rng, 0.01, 1.0)
    else:
        temperature = log_uniform(rng, 0.03, 2.0)
    epsilon = pick(rng, (0.0, 0.02, rng.uniform(0.0, 0.3)), (0.4, 0.2, 0.4))
    return SoftmaxController(law, num_outputs, temperature, epsilon, f"softmax-{kind}:{digest}")


def _draw_gaussian(law: Law, high: np.ndarray, identity: str, rng: np.random.Generator) -> GaussianController:
    relative = pick(rng, (0.0, log_uniform(rng, 0.02, 0.2), log_uniform(rng, 0.2, 1.0)), (0.3, 0.35, 0.35))
    std = high * relative * log_uniform(rng, 0.7, 1.4, len(high))
    return GaussianController(law, std, high, int(rng.integers(2**31)), identity)


def _draw_law(system: System, num_outputs: int, rng: np.random.Generator) -> tuple[Law, str]:
    """A random linear map or a small network of the standardised observation."""
    centre, scale = _observed_moments(system, rng)
    size = len(centre)
    bias = rng.normal(0.0, 0.4, num_outputs)
    gain = log_uniform(rng, 0.5, 1.5)
    if chance(rng, 0.5):
        mask = rng.random((size, 1)) < pick(rng, (0.5, 1.0))
        weights = rng.normal(0.0, gain / size**0.5, (size, num_outputs)) * mask
        return LinearLaw(centre, scale, weights, bias), "linear"
    hidden = int(rng.integers(6, 17))
    inward = rng.normal(0.0, gain / size**0.5, (size, hidden))
    outward = rng.normal(0.0, 1.5 / hidden**0.5, (hidden, num_outputs))
    return NetworkLaw(centre, scale, inward, rng.normal(0.0, 0.5, hidden), outward, bias), "network"


def _observed_moments(system: System, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each observed column under uniform actions, (D,) each."""
    states = system.reset(PILOT_COPIES, rng)
    seen = [system.observe(states)]
    for _ in range(PILOT_STEPS):
        following, _, ended = system.step(states, system.actuation.uniform(PILOT_COPIES, rng), rng)
        states = np.where(ended[:, None], system.reset(PILOT_COPIES, rng), following)
        seen.append(system.observe(states))
    observations = np.concatenate(seen)
    return observations.mean(axis=0), np.maximum(observations.std(axis=0), LEAST_SCALE)
