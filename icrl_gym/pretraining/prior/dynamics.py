"""Dynamics without rewards: what moves, and the simplest families of it.

Every class draws the parameters of B tasks at once. The policy is part of the dynamics. Steps are written for many
copies (B, M, S), parameters broadcast over the copies (B, 1, S).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from icrl_gym.pretraining.prior.draws import Batched, Draws

NOISELESS_SHARE = 0.5  # real systems seldom move at random: what is random in a log is mostly the policy
STATE_LIMIT = 12.0


@dataclass(frozen=True)
class Noise(Batched):
    """Independent noise scale * (e + tail * e^3), e standard normal: tail > 0 gives rare kicks."""

    scale_B1S: Tensor
    tail_B1S: Tensor

    @classmethod
    def draw(cls, draws: Draws, size: int, low: float, high: float) -> Self:
        """Scales between ``low`` and ``high``; a share of the tasks has none, another share has heavy tails."""
        scale_B11 = draws.log_uniform(low, high, 1, 1) * (~draws.chance(NOISELESS_SHARE, 1, 1))
        spread_B1S = draws.log_uniform(0.5, 2.0, 1, size)
        tail_B11 = draws.log_uniform(0.03, 0.3, 1, 1) * draws.chance(0.35, 1, 1)
        return cls(scale_B11 * spread_B1S, scale_B11 * spread_B1S * tail_B11)

    def sample(self, num_copies: int, generator: torch.Generator) -> Tensor:
        num_tasks, _, size = self.scale_B1S.shape
        normal = torch.randn((num_tasks, num_copies, size), generator=generator, device=generator.device)
        return torch.addcmul(self.scale_B1S, self.tail_B1S, normal * normal).mul_(normal)


@dataclass(frozen=True)
class Start(Batched):
    """Starting states: a narrow cloud around a point, away from where the dynamics settle."""

    centre_B1S: Tensor
    spread_B1S: Tensor

    @classmethod
    def draw(cls, draws: Draws, size: int, reach: float = 1.5) -> Self:
        centre_B1S = draws.normal(1, size) * draws.uniform(0.0, reach, 1, 1)
        spread_B1S = draws.log_uniform(0.01, 0.4, 1, 1) * draws.log_uniform(0.3, 3.0, 1, size)
        return cls(centre_B1S, spread_B1S)

    def sample(self, num_copies: int, generator: torch.Generator) -> Tensor:
        num_tasks, _, size = self.centre_B1S.shape
        uniform = torch.rand((num_tasks, num_copies, size), generator=generator, device=generator.device)
        return torch.addcmul(self.centre_B1S, self.spread_B1S, uniform * 2 - 1)


@dataclass(frozen=True)
class Dynamics(Batched):
    """Base of all continuous dynamics: where episodes start, how the state moves on, and what disturbs it."""

    origin: Start
    noise: Noise

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        """Parameters of B tasks of one size."""
        raise NotImplementedError

    def start(self, num_copies: int, generator: torch.Generator) -> Tensor:
        return self.origin.sample(num_copies, generator)

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """The next states, (B, M, S) -> (B, M, S)."""
        raise NotImplementedError

    @property
    def is_random_B(self) -> Tensor:
        """Which tasks have any noise, (B,) bool."""
        return (self.noise.scale_B1S > 0).flatten(1).any(dim=1)

    def features(self, states: Tensor) -> Tensor:
        """Measurable features; by default the state itself."""
        return states


@dataclass(frozen=True)
class VectorField(Dynamics):
    """Smooth random vector field: a random two-layer network pulls the state, a leak holds it; fixed points, cycles."""

    leak_B1S: Tensor
    bias_B1H: Tensor
    inward_BSH: Tensor
    outward_BHS: Tensor

    NUM_HIDDEN = 12

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        hidden = cls.NUM_HIDDEN
        step_B11 = draws.log_uniform(0.02, 0.3, 1, 1)
        gain_B11 = draws.uniform(0.5, 3.0, 1, 1)
        return cls(
            origin=Start.draw(draws, size),
            leak_B1S=1.0 - step_B11 * draws.uniform(0.5, 1.5, 1, size),
            bias_B1H=draws.normal(1, hidden),
            inward_BSH=draws.normal(size, hidden) * (1.5 / size**0.5),
            outward_BHS=draws.normal(hidden, size) * (step_B11 * gain_B11 / hidden**0.5),
            noise=Noise.draw(draws, size, 0.003, 0.3),
        )

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        hidden_BMH = torch.baddbmm(self.bias_B1H, states, self.inward_BSH).tanh_()
        drift = self.noise.sample(states.shape[1], generator).baddbmm_(hidden_BMH, self.outward_BHS)
        return drift.addcmul_(states, self.leak_B1S).clamp_(-STATE_LIMIT, STATE_LIMIT)


@dataclass(frozen=True)
class Switching(Dynamics):
    """Regions with a linear system each: rotation and pull towards the region's own centre; borders are sharp."""

    border_BSK: Tensor
    border_B1K: Tensor
    matrix_BXS: Tensor  # X = K * S: the systems below each other
    shift_BKS: Tensor

    NUM_MODES = 3
    SHARPNESS = 25.0

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        modes = cls.NUM_MODES
        step_B111 = draws.log_uniform(0.02, 0.25, 1, 1, 1)
        turn_BKSS = draws.normal(modes, size, size) * draws.uniform(0.0, 1.5, 1, 1, 1)
        turn_BKSS = turn_BKSS - turn_BKSS.mT
        pull_BK1S = draws.uniform(-0.2, 1.2, modes, 1, size)
        matrix_BKSS = step_B111 * (turn_BKSS / size**0.5 - torch.diag_embed(pull_BK1S.squeeze(2)))
        centre_BK1S = draws.normal(modes, 1, size) * 1.5
        shift_BK1S = -centre_BK1S @ matrix_BKSS
        return cls(
            origin=Start.draw(draws, size),
            border_BSK=draws.normal(size, modes) * (cls.SHARPNESS / size**0.5),
            border_B1K=draws.normal(1, modes) * (0.4 * cls.SHARPNESS),
            matrix_BXS=matrix_BKSS.flatten(1, 2),
            shift_BKS=shift_BK1S.squeeze(2),
            noise=Noise.draw(draws, size, 0.003, 0.2),
        )

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        weight_BMK = torch.baddbmm(self.border_B1K, states, self.border_BSK).softmax(dim=-1)
        gated_BMX = (weight_BMK.unsqueeze(-1) * states.unsqueeze(-2)).flatten(2)
        moved = self.noise.sample(states.shape[1], generator).add_(states).baddbmm_(gated_BMX, self.matrix_BXS)
        return moved.baddbmm_(weight_BMK, self.shift_BKS).clamp_(-4.0, 4.0)


@dataclass(frozen=True)
class Seeker(Dynamics):
    """A point with inertia that heads for a target drawn at every reset; the target is part of what is seen.

    State: position (P), velocity (P), target (P). Features: position, velocity, target - position.
    """

    stiffness_B1P: Tensor
    damping_B1P: Tensor
    strength_B11: Tensor
    step_B11: Tensor

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        origin = Start.draw(draws, 3 * size, reach=0.5)
        spread_B1S = origin.spread_B1S.clone()
        spread_B1S[..., size : 2 * size] *= 0.3
        spread_B1S[..., 2 * size :] = draws.uniform(0.3, 1.5, 1, size)
        step_B11 = draws.log_uniform(0.03, 0.3, 1, 1)
        return cls(
            origin=Start(origin.centre_B1S, spread_B1S),
            stiffness_B1P=draws.log_uniform(0.3, 3.0, 1, size),
            damping_B1P=draws.uniform(0.3, 2.0, 1, size),
            strength_B11=draws.log_uniform(0.1, 2.0, 1, 1),
            step_B11=step_B11,
            noise=Noise.draw(draws, size, 0.003, 0.2),
        )

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        position, velocity, target = states.chunk(3, dim=-1)
        wish = (target - position).mul_(self.stiffness_B1P)
        force = wish.div_(self.strength_B11).tanh_().mul_(self.strength_B11)
        force.addcmul_(velocity, self.damping_B1P, value=-1.0).mul_(self.step_B11)
        velocity = velocity + force + self.noise.sample(states.shape[1], generator)
        position = torch.addcmul(position, velocity, self.step_B11).clamp_(-STATE_LIMIT, STATE_LIMIT)
        return torch.cat([position, velocity, target], dim=-1)

    def features(self, states: Tensor) -> Tensor:
        position, velocity, target = states.chunk(3, dim=-1)
        return torch.cat([position, velocity, target - position], dim=-1)
