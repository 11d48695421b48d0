"""Second-order dynamics: (position, velocity) pairs with springs, unstable directions, contacts, gaits and rotors.

P pairs; velocities move first, positions follow with the new velocity. All constants are random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from icrl_gym.pretraining.prior.draws import Draws
from icrl_gym.pretraining.prior.dynamics import STATE_LIMIT, Dynamics, Noise, Start


@dataclass(frozen=True)
class Oscillator(Dynamics):
    """Coupled damped springs, hardening or softening, some driven by a constant force.

    State: position (P), velocity (P).
    """

    step_B11: Tensor
    linear_BSP: Tensor
    force_B1P: Tensor
    bend_B1P: Tensor

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        step_B11 = draws.log_uniform(0.03, 0.3, 1, 1)
        stiffness_BP = draws.log_uniform(0.1, 4.0, size)
        damping_BP = draws.log_uniform(0.03, 1.5, 1) * draws.log_uniform(0.5, 2.0, size)
        coupling_BPP = draws.normal(size, size) * (draws.uniform(0.0, 0.4, 1, 1) / size**0.5)
        spring_BPP = (coupling_BPP + coupling_BPP.mT) * 0.5 - torch.diag_embed(stiffness_BP)
        return cls(
            origin=Start.draw(draws, 2 * size),
            step_B11=step_B11,
            linear_BSP=torch.cat([spring_BPP, -torch.diag_embed(damping_BP)], dim=1) * step_B11,
            force_B1P=draws.normal(1, size) * step_B11,
            bend_B1P=draws.uniform(-0.5, 1.0, 1, size) * step_B11,
            noise=Noise.draw(draws, size, 0.003, 0.2),
        )

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        position, velocity = states.chunk(2, dim=-1)
        change = self.noise.sample(states.shape[1], generator).baddbmm_(states, self.linear_BSP).add_(self.force_B1P)
        change.addcmul_(position.tanh(), self.bend_B1P, value=-1.0)
        velocity = velocity + change
        position = torch.addcmul(position, velocity, self.step_B11)
        return torch.cat([position, velocity], dim=-1).clamp_(-STATE_LIMIT, STATE_LIMIT)


@dataclass(frozen=True)
class Stabilised(Dynamics):
    """Unstable directions held up by a bounded, imperfect controller; noise sometimes pushes them past its reach.

    State: position (P), velocity (P). The first pair is unstable, the others are unstable, neutral or sprung.
    """

    step_B11: Tensor
    linear_BSP: Tensor
    gain_BSP: Tensor
    bias_B1P: Tensor
    strength_B1P: Tensor

    REACH = 3.0

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        step_B11 = draws.log_uniform(0.02, 0.2, 1, 1)
        push_BP = draws.uniform(-1.0, 1.0, size)
        push_BP[:, 0] = draws.uniform(0.3, 2.5)
        stiffness_BP = push_BP.clamp(min=0) * draws.uniform(1.1, 2.5, size) + draws.uniform(0.05, 0.5, size)
        damping_BP = 2 * draws.uniform(0.15, 1.2, size) * (stiffness_BP - push_BP).clamp(min=0.05).sqrt()
        cross_B11 = draws.uniform(0.0, 0.3, 1, 1) / size**0.5
        sharpness_B11 = draws.log_uniform(1.0, 8.0, 1, 1)  # high: nearly bang-bang, a chattering cycle
        gain_BSP = -torch.cat([torch.diag_embed(stiffness_BP), torch.diag_embed(damping_BP)], dim=1)
        gain_BSP = gain_BSP + draws.normal(2 * size, size) * cross_B11
        strength_B1P = draws.uniform(0.3, 1.5, 1, size) * (0.3 + push_BP.abs().unsqueeze(1))
        push_BSP = torch.cat(
            [
                torch.diag_embed(push_BP),
                -0.05 * torch.eye(size, device=step_B11.device).expand(draws.num_tasks, -1, -1),
            ],
            dim=1,
        )
        origin = Start.draw(draws, 2 * size, reach=0.15)
        return cls(
            origin=Start(origin.centre_B1S, origin.spread_B1S * 0.5),
            step_B11=step_B11,
            linear_BSP=push_BSP * step_B11,
            gain_BSP=gain_BSP * sharpness_B11 / strength_B1P,
            bias_B1P=draws.normal(1, size) * 0.1,
            strength_B1P=strength_B1P * step_B11,
            noise=Noise.draw(draws, size, 0.01, 0.2),
        )

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        position, velocity = states.chunk(2, dim=-1)
        control = torch.baddbmm(self.bias_B1P, states, self.gain_BSP).tanh_()
        change = self.noise.sample(states.shape[1], generator).baddbmm_(states, self.linear_BSP)
        velocity = change.addcmul_(control, self.strength_B1P).add_(velocity)
        position = torch.addcmul(position, velocity, self.step_B11)
        return torch.cat([position, velocity], dim=-1).clamp_(-self.REACH, self.REACH)


@dataclass(frozen=True)
class Contact(Dynamics):
    """Bodies under constant force between two walls: bounces, kicks off the lower wall, inelastic stops, dry friction.

    State: position (P), velocity (P). The walls are at 0 and ``ceiling``; a kick is what the policy does there.
    """

    step_B11: Tensor
    force_B1P: Tensor
    damping_B1P: Tensor
    friction_B1P: Tensor
    restitution_B1P: Tensor
    kick_B1P: Tensor
    ceiling_B1P: Tensor
    coupling_BPP: Tensor

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        step_B11 = draws.log_uniform(0.03, 0.2, 1, 1)
        origin = Start.draw(draws, 2 * size, reach=0.5)
        centre_B1S = origin.centre_B1S.clone()
        centre_B1S[..., :size] = draws.uniform(0.2, 1.5, 1, size)
        kicks_B1P = draws.uniform(0.3, 1.5, 1, size) * draws.chance(0.5, 1, size)
        return cls(
            origin=Start(centre_B1S, origin.spread_B1S),
            step_B11=step_B11,
            force_B1P=-draws.uniform(0.1, 1.5, 1, size) * step_B11,
            damping_B1P=1.0 - step_B11 * draws.uniform(0.0, 0.5, 1, size),
            friction_B1P=step_B11 * draws.uniform(0.0, 0.5, 1, size) * draws.chance(0.3, 1, size),
            restitution_B1P=draws.uniform(0.0, 0.95, 1, size) * draws.chance(0.7, 1, size),
            kick_B1P=kicks_B1P,
            ceiling_B1P=draws.uniform(0.8, 3.0, 1, size),
            coupling_BPP=draws.normal(size, size) * (step_B11 * draws.uniform(0.0, 0.5, 1, 1) / size**0.5),
            noise=Noise.draw(draws, size, 0.003, 0.15),
        )

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        position, velocity = states.chunk(2, dim=-1)
        change = self.noise.sample(states.shape[1], generator).baddbmm_(position, self.coupling_BPP)
        velocity = torch.addcmul(change, velocity, self.damping_B1P).add_(self.force_B1P)
        velocity = velocity - velocity.clamp(-self.friction_B1P, self.friction_B1P)
        position = torch.addcmul(position, velocity, self.step_B11)
        rebound = self.kick_B1P - velocity * self.restitution_B1P
        velocity = torch.where(position < 0, rebound, velocity)
        velocity = torch.where(position > self.ceiling_B1P, -velocity * self.restitution_B1P, velocity)
        position = torch.minimum(position.clamp_(min=0), self.ceiling_B1P)
        return torch.cat([position, velocity.clamp_(-6.0, 6.0)], dim=-1)


@dataclass(frozen=True)
class Gait(Dynamics):
    """Joints that follow a rhythm, a speed that they drive, and a lean that the rhythm keeps nearly upright.

    State: joint angles (J), joint velocities (J), phase, speed, lean, lean velocity. Features: all but the phase.
    """

    step_B11: Tensor
    rhythm_B11: Tensor
    amplitude_B1J: Tensor
    offset_B1J: Tensor
    rest_B1J: Tensor
    stiffness_B1J: Tensor
    damping_B1J: Tensor
    body_BSX: Tensor  # from the whole state to the changes of speed and lean velocity, X = 2
    body_B1X: Tensor
    hold_B11: Tensor

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        step_B11 = draws.log_uniform(0.03, 0.15, 1, 1)
        push_B1 = draws.uniform(0.2, 1.5, 1)
        body_BSX = draws.normal(2 * size + 4, 2) * (draws.uniform(0.05, 0.5, 1, 1) / size**0.5)
        body_BSX[:, 2 * size] = 0.0
        body_BSX[:, 2 * size + 1, 0] = -draws.uniform(0.2, 1.0)
        body_BSX[:, 2 * size + 2, 1] = push_B1[:, 0]
        body_BSX[:, 2 * size + 3, 1] = -draws.uniform(0.3, 1.5)
        origin = Start.draw(draws, 2 * size + 4, reach=0.3)
        return cls(
            origin=Start(origin.centre_B1S, origin.spread_B1S * 0.5),
            step_B11=step_B11,
            rhythm_B11=step_B11 * draws.log_uniform(0.5, 4.0, 1, 1),
            amplitude_B1J=draws.uniform(0.2, 1.0, 1, size),
            offset_B1J=draws.uniform(0.0, 2 * math.pi, 1, size),
            rest_B1J=draws.normal(1, size) * 0.3,
            stiffness_B1J=draws.log_uniform(0.5, 8.0, 1, size),
            damping_B1J=draws.uniform(0.5, 3.0, 1, size),
            body_BSX=body_BSX * step_B11,
            body_B1X=draws.normal(1, 2) * 0.3 * step_B11,
            hold_B11=push_B1.unsqueeze(-1) * draws.uniform(1.1, 2.5, 1, 1) * step_B11,
            noise=Noise.draw(draws, size + 2, 0.003, 0.1),
        )

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        joints = self.amplitude_B1J.shape[-1]
        angle, speed, rest = states[..., :joints], states[..., joints : 2 * joints], states[..., 2 * joints :]
        phase, lean = rest[..., :1], rest[..., 2:3]
        noise = self.noise.sample(states.shape[1], generator)
        target = torch.addcmul(self.rest_B1J, self.amplitude_B1J, (phase + self.offset_B1J).cos_())
        force = (target - angle).mul_(self.stiffness_B1J).addcmul_(speed, self.damping_B1J, value=-1.0)
        new_speed = torch.addcmul(speed, force, self.step_B11).add_(noise[..., :joints])
        new_angle = torch.addcmul(angle, new_speed, self.step_B11)
        change = torch.baddbmm(self.body_B1X, states, self.body_BSX).add_(noise[..., joints:])
        change[..., 1:].addcmul_((2 * lean).tanh_(), self.hold_B11, value=-0.5)
        body = rest[..., 1::2] + change  # forward speed and lean velocity
        new_phase = torch.remainder(phase + self.rhythm_B11, 2 * math.pi)
        new_lean = torch.addcmul(lean, body[..., 1:], self.step_B11)
        parts = [new_angle, new_speed, new_phase, body[..., :1], new_lean, body[..., 1:]]
        return torch.cat(parts, dim=-1).clamp_(-2 * math.pi, 2 * math.pi)

    def features(self, states: Tensor) -> Tensor:
        joints = self.amplitude_B1J.shape[-1]
        return torch.cat([states[..., : 2 * joints], states[..., 2 * joints + 1 :]], dim=-1)


@dataclass(frozen=True)
class Rotor(Dynamics):
    """Angles in random periodic landscapes, driven, damped and (if several) coupled through their differences.

    State: angle (P), angular velocity (P). Features: cosines, sines, angular velocities.
    """

    step_B11: Tensor
    first_B1P: Tensor
    second_B1P: Tensor
    double_B1P: Tensor
    drive_B1P: Tensor
    damping_B1P: Tensor
    coupling_BPP: Tensor

    @classmethod
    def draw(cls, draws: Draws, size: int) -> Self:
        step_B11 = draws.log_uniform(0.03, 0.25, 1, 1)
        coupling_BPP = draws.normal(size, size) * draws.uniform(0.2, 1.5, 1, 1) / size**0.5
        return cls(
            origin=cls._origin(draws, size),
            step_B11=step_B11,
            first_B1P=draws.normal(1, size) * step_B11,
            second_B1P=draws.normal(1, size) * step_B11,
            double_B1P=draws.normal(1, size) * 0.6 * step_B11,
            drive_B1P=draws.normal(1, size) * draws.chance(0.5, 1, size) * step_B11,
            damping_B1P=1.0 - step_B11 * draws.log_uniform(0.05, 1.0, 1, size),
            coupling_BPP=(coupling_BPP + coupling_BPP.mT) * 0.5 * step_B11,
            noise=Noise.draw(draws, size, 0.003, 0.25),
        )

    @classmethod
    def _origin(cls, draws: Draws, size: int) -> Start:
        origin = Start.draw(draws, 2 * size, reach=0.5)
        centre_B1S, spread_B1S = origin.centre_B1S.clone(), origin.spread_B1S.clone()
        centre_B1S[..., :size] = draws.uniform(-math.pi, math.pi, 1, size)
        anywhere_B1P = draws.chance(0.25, 1, 1) & draws.chance(0.7, 1, size)
        spread_B1S[..., :size] = torch.where(anywhere_B1P, math.pi, spread_B1S[..., :size])
        return Start(centre_B1S, spread_B1S)

    def advance(self, states: Tensor, generator: torch.Generator) -> Tensor:
        angle, speed = states.chunk(2, dim=-1)
        cosine, sine = angle.cos(), angle.sin()
        change = self.noise.sample(states.shape[1], generator).add_(self.drive_B1P)
        change.addcmul_(sine, self.first_B1P).addcmul_(cosine, self.second_B1P)
        change.addcmul_(sine * cosine, self.double_B1P, value=2.0)
        if angle.shape[-1] > 1:
            change.addcmul_(torch.bmm(sine, self.coupling_BPP), cosine)
            change.addcmul_(torch.bmm(cosine, self.coupling_BPP), sine, value=-1.0)
        speed = change.addcmul_(speed, self.damping_B1P).clamp_(-8.0, 8.0)
        return torch.cat([torch.addcmul(angle, speed, self.step_B11), speed], dim=-1)

    def features(self, states: Tensor) -> Tensor:
        angle, speed = states.chunk(2, dim=-1)
        return torch.cat([angle.cos(), angle.sin(), speed], dim=-1)
