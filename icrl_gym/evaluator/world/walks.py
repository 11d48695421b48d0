"""Walks in a world: where they end after some steps, and what they earned on the way.

    V_H(x) = sum_{t < H} D_t ((1 - c_t) r_t + c_t e_t) + D_H V(z_H),   z_0 = x,  D_{t+1} = gamma (1 - c_t) D_t,  D_0 = 1

with r the reward of going on, c the probability of an ending and e the reward at it, all at (z_t, a_t), and a_t the
actor's action. This is model-based value expansion (Feinberg et al. 2018); V is read off the context by attention.

Every query is followed by P particles in each of K members. The noise is fixed per step and particle, so that a walk
depends on its query alone.

Shape legend: Q queries, P particles, K members, D features, T steps, N transitions, U noise numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_gym.evaluator.world.actors import ActionFeatures, Actor
from icrl_gym.evaluator.world.model import Step, World

NOISE_SEED = 0x51AC
GATHER_AGAIN = 0.7  # share of the moved particles that must go on
GONE = 1e-4  # discount below which a particle stops


@dataclass(frozen=True, eq=False)
class Stop:
    """Where the particles are after some steps.

    Attributes:
        states_KBD: their states.
        discounts_KB: discount times probability of having got there.
        earned_KB: discounted rewards on the way.
        going_KB: whether they take the next step; a particle that leaves what the context shows stays where it left.
    """

    states_KBD: Tensor
    discounts_KB: Tensor
    earned_KB: Tensor
    going_KB: Tensor


@dataclass(frozen=True, eq=False)
class Walker:
    """A world, and who acts in it.

    Attributes:
        world: the model.
        actors: who acts in each member, or in all of them where there is one.
        action_features: how the model sees actions.
        gamma: discount.
    """

    world: World
    actors: tuple[Actor, ...]
    action_features: ActionFeatures
    gamma: float

    @property
    def num_noise(self) -> int:
        """Uniform numbers per action."""
        return self.actors[0].num_noise

    def act(self, states_KBD: Tensor, noise_KBU: np.ndarray) -> Tensor:
        """Features of the actors' actions (K, B, X)."""
        states = states_KBD.cpu().numpy()
        # One actor answers for all members at once.
        parts = zip(np.split(states, len(self.actors)), np.split(noise_KBU, len(self.actors)), strict=True)
        features = [
            self.action_features(actor.actions(_flat(part), _flat(noise))).reshape(*part.shape[:2], -1)
            for actor, (part, noise) in zip(self.actors, parts, strict=True)
        ]
        return torch.as_tensor(np.concatenate(features), device=states_KBD.device)

    def steps(
        self, states_KBD: Tensor, num_steps: int, act: Callable[[int, Tensor, np.ndarray], Tensor]
    ) -> Iterator[tuple[Stop, Step | None, Tensor]]:
        """The particles before each step, the step, and whose it is; at last where they end.

        Only particles that go on are moved; they are gathered anew when many have stopped.

        Args:
            states_KBD: where the particles start.
            num_steps: T.
            act: features of the actions, of the step's number, the states (K, A, D), and whose they are (K, A).
        """
        num_features = states_KBD.shape[-1]
        states_KBD, discounts_KB = states_KBD.clone(), torch.ones_like(states_KBD[..., 0])
        earned_KB, going_KB = torch.zeros_like(discounts_KB), self.world.seen(states_KBD)
        whose_KA, limits = _going_first(going_KB), self.world.limits(states_KBD)
        for index in range(num_steps):
            if whose_KA.shape[1] and int(going_KB.sum(dim=1).max()) < GATHER_AGAIN * whose_KA.shape[1]:
                whose_KA = _going_first(going_KB)
            if not whose_KA.shape[1]:
                yield Stop(states_KBD, discounts_KB, earned_KB, going_KB), None, whose_KA
                continue
            spread_KAD = whose_KA[..., None].expand(-1, -1, num_features)
            now_KAD = states_KBD.gather(1, spread_KAD)
            which_KA = whose_KA.cpu().numpy()
            limits_KA = None if limits is None else limits.of(which_KA)
            step = self.world.advance(now_KAD, act(index, now_KAD, which_KA), limits_KA)
            going_KA = going_KB.gather(1, whose_KA) & self.world.pays_as_seen(step.rewards_KB)
            going_KB = going_KB.scatter(1, whose_KA, going_KA)
            yield Stop(states_KBD, discounts_KB, earned_KB, going_KB), step, whose_KA
            lives_KA, at_KA = 1.0 - step.endings_KB, discounts_KB.gather(1, whose_KA)
            reward_KA = lives_KA * step.rewards_KB + step.endings_KB * step.ending_rewards_KB
            next_KAD = torch.where(going_KA[..., None], step.next_KBD, now_KAD)
            earned_KB = earned_KB.scatter_add(1, whose_KA, torch.where(going_KA, at_KA * reward_KA, 0.0))
            at_KA = torch.where(going_KA, self.gamma * at_KA * lives_KA, at_KA)
            discounts_KB = discounts_KB.scatter(1, whose_KA, at_KA)
            states_KBD = states_KBD.scatter(1, spread_KAD, next_KAD)
            going_KB = going_KB.scatter(1, whose_KA, going_KA & self.world.seen(next_KAD) & (at_KA > GONE))
        yield Stop(states_KBD, discounts_KB, earned_KB, going_KB), None, whose_KA

    def follow(self, features_QD: np.ndarray, horizons: Sequence[int], num_particles: int) -> list[Stop]:
        """Where the walks from Q queries are after each horizon; particles (K, Q * P) of a query side by side."""
        wanted = set(horizons)
        stops = self._walk(features_QD, max(horizons), num_particles)
        return [stop for index, (stop, _, _) in enumerate(stops) if index in wanted]

    def reward_weights(self, features_QD: np.ndarray, weights_TQ: np.ndarray, num_particles: int) -> np.ndarray:
        """Weights (Q, N) of the context's rewards in the walks' earnings, each step's weighed by ``weights_TQ``.

        The walks are those of `follow`; the members and the particles count equally.
        """
        world, num_queries = self.world, len(features_QD)
        on_the_way: list[_Sum] = []
        at_endings = _Sum(num_queries, num_particles)
        share_TQ = torch.as_tensor(weights_TQ / (num_particles * len(world.rows_KM)), device=world.low_KD.device)
        for index, (stop, step, whose_KA) in enumerate(self._walk(features_QD, len(weights_TQ), num_particles)):
            if step is None:
                continue
            at_KA = (stop.discounts_KB * stop.going_KB).gather(1, whose_KA)
            at_KA = at_KA * share_TQ[index][whose_KA // num_particles]
            lives_KA = at_KA * (1.0 - step.endings_KB)
            on_the_way = on_the_way or [_Sum(num_queries, num_particles) for _ in step.reward_reads]
            for total, read_KAX in zip(on_the_way, step.reward_reads, strict=True):
                total.add(whose_KA, lives_KA, read_KAX)
            at_endings.add(whose_KA, at_KA * step.endings_KB, step.ending_weights_KBE)
        if not on_the_way:
            return np.zeros((num_queries, world.num_transitions))
        weights_QN = world.reward_weights([one.total_KQX for one in on_the_way if one.total_KQX is not None])
        if at_endings.total_KQX is not None:
            weights_QN[:, world.ended_E] += at_endings.total_KQX.sum(dim=0).cpu().numpy()
        return weights_QN

    def _walk(
        self, features_QD: np.ndarray, num_steps: int, num_particles: int
    ) -> Iterator[tuple[Stop, Step | None, Tensor]]:
        num_members = len(self.world.rows_KM)
        noise_TKPU = walk_noise(num_steps, num_members, num_particles, self.num_noise)
        members_K1 = np.arange(num_members)[:, None]
        starts_KBD = self.starts(features_QD, num_particles)
        return self.steps(
            starts_KBD, num_steps,
            lambda index, states, whose: self.act(states, noise_TKPU[index][members_K1, whose % num_particles]),
        )  # fmt: skip

    def starts(self, features_QD: np.ndarray, num_particles: int) -> Tensor:
        """P particles at each query in each member, (K, Q * P, D)."""
        states_BD = torch.as_tensor(np.repeat(features_QD, num_particles, axis=0), device=self.world.low_KD.device)
        return states_BD.double().expand(len(self.world.rows_KM), -1, -1)


def walk_noise(num_steps: int, num_members: int, num_particles: int, num_noise: int) -> np.ndarray:
    """Uniform noise (T, K, P, U): at every step each of K * P equal parts of the unit interval is drawn from once."""
    generator, count = np.random.default_rng(NOISE_SEED), num_members * num_particles
    noise_TBU = np.empty((num_steps, count, num_noise))
    for step in range(num_steps):  # the steps of a shorter walk are those of a longer one
        order_BU = generator.random((count, num_noise)).argsort(axis=0)
        noise_TBU[step] = (order_BU + generator.random((count, num_noise))) / count
    return noise_TBU.clip(1e-9, 1.0 - 1e-9).reshape(num_steps, num_members, num_particles, num_noise)


def _flat(array_KBX: np.ndarray) -> np.ndarray:
    return array_KBX.reshape(-1, array_KBX.shape[-1])


def _going_first(going_KB: Tensor) -> Tensor:
    """Indices (K, A) of the particles that go on, A the most that any member has; others fill up."""
    return torch.argsort(going_KB, dim=1, descending=True, stable=True)[:, : int(going_KB.sum(dim=1).max())]


class _Sum:
    """A weighted sum over steps and particles for each member and query, (K, Q, X); None before the first."""

    def __init__(self, num_queries: int, num_particles: int) -> None:
        self._num_queries, self._num_particles = num_queries, num_particles
        self.total_KQX: Tensor | None = None

    def add(self, whose_KA: Tensor, weights_KA: Tensor, read_KAX: Tensor | None) -> None:
        if read_KAX is None:
            return
        if self.total_KQX is None:
            self.total_KQX = read_KAX.new_zeros(len(whose_KA), self._num_queries, read_KAX.shape[-1])
        query_KAX = (whose_KA // self._num_particles)[..., None].expand_as(read_KAX)
        self.total_KQX.scatter_add_(1, query_KAX, weights_KA[..., None] * read_KAX)
