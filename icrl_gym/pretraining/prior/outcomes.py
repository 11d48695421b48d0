"""Rewards and termination, drawn independently of the dynamics and fitted to where they actually go.

All is read off eight quadratic forms of the normalised features z (B, M, F), evaluated at the state arrived in. A pilot
run of the dynamics tells the scale of every form and, for a wanted frequency, the border or the hazard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from icrl_gym.pretraining.prior.draws import Batched, Draws, gather_rows

QUADRATIC, DISTANCE, REGION, LINEAR, SMOOTH, BORDER, SECOND_BORDER, HAZARD = range(8)
NEVER = -1e9  # a border that is never crossed
MAX_HAZARD = 0.5

PER_STEP, SPARSE, COST, PIECEWISE, DISTANCE_COST, PROGRESS, MIXED = range(7)
REWARD_WEIGHTS = (0.28, 0.1, 0.18, 0.08, 0.1, 0.12, 0.14)
NO_END, BOX, GOAL, HAZARDOUS = range(4)
BORDER_LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 1.0)


@dataclass(frozen=True)
class Outcomes(Batched):
    """Rewards and stop probabilities of B tasks as functions of the normalised features of the state arrived in.

    Attributes:
        linear_BUF, square_BUF, constant_BU1: the forms, U = 8.
        weight_B1C: weights of the reward components (constant, quadratic, distance, region, linear, smooth), C = 6.
        hazard_B1: hazard at its average state; 0 for none.
        steepness_B1: strength of the hazard's dependence on the state, as a power of e.
        terminal_B1: extra reward when the process terminates.
        noise_B1, effort_B1: standard deviation of the noise on logged rewards, and whether it is one-sided.
        kind_B, end_B: which reward and which termination was drawn.
    """

    linear_BUF: Tensor
    square_BUF: Tensor
    constant_BU1: Tensor
    weight_B1C: Tensor
    hazard_B1: Tensor
    steepness_B1: Tensor
    terminal_B1: Tensor
    noise_B1: Tensor
    effort_B1: Tensor
    kind_B: Tensor
    end_B: Tensor

    def __call__(self, features_BMF: Tensor) -> tuple[Tensor, Tensor]:
        """Expected rewards without the terminal one, and stop probabilities, (B, M) each."""
        forms_BUM = quadratic_forms(features_BMF, self.linear_BUF, self.square_BUF, self.constant_BU1)
        forms = forms_BUM.unbind(dim=1)
        weight = self.weight_B1C.unbind(dim=-1)
        rewards = torch.addcmul(weight[0], forms[QUADRATIC], weight[1])
        rewards.addcmul_(forms[DISTANCE].clamp_(min=0).sqrt_(), weight[2])
        rewards.addcmul_((forms[REGION] > 0).float(), weight[3])
        rewards.addcmul_(forms[LINEAR], weight[4]).addcmul_(forms[SMOOTH].tanh_(), weight[5])
        hazard = forms[HAZARD].tanh_().mul_(self.steepness_B1).exp_().mul_(self.hazard_B1).clamp_(max=MAX_HAZARD)
        crossed = torch.maximum(forms[BORDER], forms[SECOND_BORDER]) > 0
        return rewards, hazard.masked_fill_(crossed, 1.0)


def quadratic_forms(features_BMF: Tensor, linear_BUF: Tensor, square_BUF: Tensor, constant_BU1: Tensor) -> Tensor:
    """linear . z + square . z^2 + constant, (B, U, M)."""
    forms_BUM = torch.baddbmm(constant_BU1, linear_BUF, features_BMF.mT)
    return forms_BUM.baddbmm_(square_BUF, (features_BMF * features_BMF).mT)


def draw_outcomes(draws: Draws, pilot_BMTF: Tensor, gamma: Tensor, end_weights: Sequence[float]) -> Outcomes:
    """Draw rewards and termination for dynamics whose pilot run (M copies, T steps, normalised) is given.

    Args:
        draws: one generator for all choices.
        pilot_BMTF: normalised features of unended runs from resets.
        gamma: (B,) discounts; terminal rewards are at most worth 1 / (1 - gamma) steps.
        end_weights: weights of the terminations none, box, goal and hazard.
    """
    kind_B, end_B = draws.choice(REWARD_WEIGHTS), draws.choice(end_weights)
    end_B = torch.where(
        (kind_B == PER_STEP) & (end_B == NO_END), torch.where(draws.chance(0.75), BOX, HAZARDOUS), end_B
    )
    linear_BUF, square_BUF, constant_BU1 = _forms(draws, pilot_BMTF, end_B)
    flat_BPF = pilot_BMTF.flatten(1, 2)
    forms_BUP = quadratic_forms(flat_BPF, linear_BUF, square_BUF, constant_BU1)
    constant_BU1 = constant_BU1.clone()
    constant_BU1[:, REGION, 0] -= _level(forms_BUP[:, REGION], draws.uniform(0.5, 0.98))
    border_BMT = torch.maximum(forms_BUP[:, BORDER], forms_BUP[:, SECOND_BORDER]).unflatten(1, pilot_BMTF.shape[1:3])
    rate_B = torch.where(end_B == GOAL, draws.log_uniform(1 / 400, 1 / 20), draws.log_uniform(1 / 2000, 1 / 20))
    threshold_B = _border(border_BMT, rate_B)
    bordered_B = (end_B == BOX) | (end_B == GOAL)
    for unit in (BORDER, SECOND_BORDER):
        constant_BU1[:, unit, 0] = torch.where(bordered_B, constant_BU1[:, unit, 0] - threshold_B, NEVER)
    steepness_B1 = draws.uniform(0.5, 4.0, 1)
    typical_B1 = (forms_BUP[:, HAZARD].tanh() * steepness_B1).exp().mean(dim=1, keepdim=True)
    unit_B = draws.log_uniform(0.3, 3.0)
    unit_B = torch.where(kind_B == PER_STEP, torch.where(draws.chance(0.8), 1.0, unit_B), unit_B)
    weight_BC = _component_weights(draws, kind_B, end_B, forms_BUP) * unit_B.unsqueeze(-1)
    return Outcomes(
        linear_BUF=linear_BUF,
        square_BUF=square_BUF,
        constant_BU1=constant_BU1,
        weight_B1C=weight_BC.unsqueeze(1),
        hazard_B1=(rate_B * (end_B == HAZARDOUS)).unsqueeze(-1) / typical_B1,
        steepness_B1=steepness_B1,
        terminal_B1=(unit_B * _terminal(draws, kind_B, end_B, gamma)).unsqueeze(-1),
        noise_B1=(unit_B * draws.log_uniform(0.03, 1.0) * draws.chance(0.4)).unsqueeze(-1),
        effort_B1=draws.chance(0.35, 1),
        kind_B=kind_B,
        end_B=end_B,
    )


def _forms(draws: Draws, pilot_BMTF: Tensor, end_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Random forms before any threshold; goals and distances are centred where the process goes."""
    num_features = pilot_BMTF.shape[-1]
    shape = (draws.num_tasks, 8, num_features)
    linear, square = torch.zeros(shape, device=pilot_BMTF.device), torch.zeros(shape, device=pilot_BMTF.device)
    constant = torch.zeros(shape[:2], device=pilot_BMTF.device)
    goal_BF = _visited(draws, pilot_BMTF)
    centre_BF = torch.where(draws.chance(0.5, 1), goal_BF, 0.0)
    for unit, most, centre in ((QUADRATIC, 64, centre_BF), (DISTANCE, 3, goal_BF), (REGION, 2, goal_BF)):
        mask = draws.subset(num_features, most=most) * draws.log_uniform(0.2, 2.0, num_features)
        square[:, unit], linear[:, unit] = mask, -2 * mask * centre
        constant[:, unit] = (mask * centre.square()).sum(dim=-1)
    _negate(linear, square, constant, REGION)
    for unit, gain in ((LINEAR, 1.0), (SMOOTH, 1.5), (HAZARD, 1.0)):
        mask = draws.subset(num_features, most=4)
        linear[:, unit] = draws.normal(num_features) * mask * gain
        constant[:, unit] = draws.normal() * 0.5
    bent_B1 = draws.chance(0.5, 1)  # hazard grows away from a point
    square[:, HAZARD] = torch.where(bent_B1, linear[:, HAZARD].abs(), 0.0)
    linear[:, HAZARD] = torch.where(bent_B1, 0.0, linear[:, HAZARD])
    _borders(draws, linear, square, constant, goal_BF, end_B)
    return linear, square, constant.unsqueeze(-1)


def _negate(linear: Tensor, square: Tensor, constant: Tensor, unit: int) -> None:
    for tensor in (linear, square, constant):
        tensor[:, unit] *= -1.0


def _visited(draws: Draws, pilot_BMTF: Tensor) -> Tensor:
    """A state of the second half of the pilot run, (B, F)."""
    _, copies, steps, _ = pilot_BMTF.shape
    time_B1 = steps // 2 + draws.integer(steps - steps // 2, 1)
    index_B1 = draws.integer(copies, 1) * steps + time_B1
    return gather_rows(pilot_BMTF.flatten(1, 2), index_B1).squeeze(1)


def _borders(draws: Draws, linear: Tensor, square: Tensor, constant: Tensor, goal_BF: Tensor, end_B: Tensor) -> None:
    """Boxes are bounds on one or two features, on one or both sides; goals are balls in some features."""
    num_features = goal_BF.shape[-1]
    for unit in (BORDER, SECOND_BORDER):
        one = draws.subset(num_features, most=1).float()
        one_sided_B1 = draws.chance(0.4, 1)
        linear[:, unit] = torch.where(one_sided_B1, one * draws.sign(1), 0.0)
        square[:, unit] = torch.where(one_sided_B1, 0.0, one)
    single_B = draws.chance(0.6) | (end_B == GOAL)
    constant[:, SECOND_BORDER] = torch.where(single_B, NEVER, 0.0)
    ball = draws.subset(num_features, most=3).float()
    is_goal_B1 = (end_B == GOAL).unsqueeze(-1)
    square[:, BORDER] = torch.where(is_goal_B1, -ball, square[:, BORDER])
    linear[:, BORDER] = torch.where(is_goal_B1, 2 * ball * goal_BF, linear[:, BORDER])
    constant[:, BORDER] = torch.where(end_B == GOAL, -(ball * goal_BF.square()).sum(dim=-1), 0.0)


def _level(form_BP: Tensor, quantile_B: Tensor) -> Tensor:
    """The quantile of each task's own form, (B,)."""
    ordered_BP = form_BP.sort(dim=-1).values
    index_B1 = (quantile_B * (form_BP.shape[-1] - 1)).long().unsqueeze(-1)
    return ordered_BP.gather(-1, index_B1).squeeze(-1)


def _border(score_BMT: Tensor, rate_B: Tensor) -> Tensor:
    """The border that first crossings of the pilot run pass about as often per step as wanted, (B,)."""
    num_tasks, _, steps = score_BMT.shape
    ordered_BP = score_BMT.flatten(1).sort(dim=-1).values
    highest_BMT = score_BMT.cummax(dim=-1).values
    best_B = torch.full((num_tasks,), float("inf"), device=score_BMT.device)
    threshold_B = ordered_BP[:, -1]
    for level in BORDER_LEVELS:
        candidate_B = ordered_BP[:, int(level * (ordered_BP.shape[1] - 1))]
        below_BM = (highest_BMT <= candidate_B[:, None, None]).sum(dim=-1)
        hits_B, alive_B = (below_BM < steps).sum(dim=-1), below_BM.sum(dim=-1)
        rate = hits_B.clamp(min=0.3) / alive_B.clamp(min=1)
        gap_B = (rate.log() - rate_B.log()).abs()
        threshold_B = torch.where(gap_B < best_B, candidate_B, threshold_B)
        best_B = torch.minimum(gap_B, best_B)
    return threshold_B


def _component_weights(draws: Draws, kind_B: Tensor, end_B: Tensor, forms_BUP: Tensor) -> Tensor:
    """Weights of (constant, quadratic, distance, region, linear, smooth) in units of each one's own spread, (B, 6)."""
    sign, alive = draws.sign(), draws.chance(0.4).float() * draws.uniform(0.2, 2.0)
    zero = torch.zeros_like(sign)
    region = torch.where(end_B == GOAL, 0.0, 1.0)  # a goal that ends the episode pays there
    mixed = draws.normal(6) * draws.chance(0.6, 6)
    table_KBC = torch.stack(
        [
            torch.stack([sign, zero, zero, zero, zero, zero], dim=-1),
            torch.stack([zero, zero, zero, region, zero, zero], dim=-1),
            torch.stack([alive, zero - 1, zero, zero, zero, zero], dim=-1),
            torch.stack([zero, zero, zero, sign, zero, draws.normal()], dim=-1),
            torch.stack([zero, zero, zero - 1, zero, zero, zero], dim=-1),
            torch.stack([alive, -draws.uniform(0.0, 0.5), zero, zero, sign, zero], dim=-1),
            mixed,
        ]
    )
    weight_BC = table_KBC.gather(0, kind_B.view(1, -1, 1).expand(1, -1, 6)).squeeze(0)
    spread_BC = torch.stack(
        [
            torch.ones_like(sign),
            forms_BUP[:, QUADRATIC].std(dim=-1),
            forms_BUP[:, DISTANCE].clamp(min=0).sqrt().std(dim=-1),
            torch.ones_like(sign),
            forms_BUP[:, LINEAR].std(dim=-1),
            forms_BUP[:, SMOOTH].tanh().std(dim=-1),
        ],
        dim=-1,
    )
    return torch.where(spread_BC > 1e-3, weight_BC / spread_BC.clamp(min=1e-3), 0.0)


def _terminal(draws: Draws, kind_B: Tensor, end_B: Tensor, gamma: Tensor) -> Tensor:
    """Terminal bonus or penalty in units of the reward's spread, (B,)."""
    horizon_B = 1 / (1 - gamma).float()
    size_B = (draws.uniform(0.0, 0.85) * horizon_B.log()).exp()
    bonus_share_B = torch.where(end_B == GOAL, 0.9, 0.25)
    signed_B = torch.where(draws.uniform(0.0, 1.0) < bonus_share_B, size_B, -size_B)
    given_B = draws.chance(0.5) & (end_B != NO_END)
    must_B = (kind_B == SPARSE) & (end_B == GOAL)
    return torch.where(must_B, 1.0, torch.where(given_B, signed_B, 0.0))
