"""Observation maps: from natural features to the columns that an evaluator sees.

Every column is a mix of the natural features and of irrelevant drifting channels, bent, scaled, shifted and perhaps
noisy. The first columns show the natural features (perhaps rotated, seldom with some left out); further ones are
distractors, redundant mixes, constants, copies, or a one-hot code of a discretised feature. Their order is random.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from icrl_gym.pretraining.prior.draws import Batched, Draws

NUM_CHANNELS = 4  # drifting, irrelevant
INPUT_LIMIT = 20.0
PLAIN, SQUASHED, HEAVY, ROUNDED, WAVE, FOLDED, INDICATOR = range(7)
BEND_WEIGHTS = (0.5, 0.12, 0.12, 0.14, 0.05, 0.07)  # of a task that bends its columns
EXTRA_WEIGHTS = (0.32, 0.2, 0.18, 0.12, 0.18)
DISTRACTOR, MIX, BENT_MIX, CONSTANT, COPY = range(5)


@dataclass(frozen=True)
class Sensors(Batched):
    """D columns for each of B tasks; X = natural features and channels side by side.

    Attributes:
        mean_B1F, inverse_B1F: normalisation of the natural features.
        mix_BXD, bias_B1D: what each column looks at.
        bend_B1D: which function bends it.
        low_B1D, high_B1D: the interval that an indicator column indicates.
        grain_B1D: step of a rounded column.
        scale_B1D, offset_B1D, noise_B1D: units, origin and noise of the column.
    """

    mean_B1F: Tensor
    inverse_B1F: Tensor
    mix_BXD: Tensor
    bias_B1D: Tensor
    bend_B1D: Tensor
    low_B1D: Tensor
    high_B1D: Tensor
    grain_B1D: Tensor
    scale_B1D: Tensor
    offset_B1D: Tensor
    noise_B1D: Tensor

    def __call__(self, features_BMF: Tensor, channels_BMK: Tensor, noise_BMD: Tensor) -> Tensor:
        """Observations, (B, M, D)."""
        normal = ((features_BMF - self.mean_B1F) * self.inverse_B1F).clamp_(-INPUT_LIMIT, INPUT_LIMIT)
        column = torch.baddbmm(self.bias_B1D, torch.cat([normal, channels_BMK], dim=-1), self.mix_BXD)
        bent = {
            SQUASHED: (1.5 * column).tanh(),
            HEAVY: column.clamp(-6, 6).sinh(),
            ROUNDED: (column / self.grain_B1D).round() * self.grain_B1D,
            WAVE: (2.0 * column).sin(),
            FOLDED: column.abs(),
            INDICATOR: ((column >= self.low_B1D) & (column < self.high_B1D)).float(),
        }
        for bend, values in bent.items():
            column = torch.where(self.bend_B1D == bend, values, column)
        return column * self.scale_B1D + self.offset_B1D + self.noise_B1D * noise_BMD


def plain_sensors(num_tasks: int, num_features: int, device: torch.device) -> Sensors:
    """The natural features as they are."""
    zero, one = (
        torch.zeros(num_tasks, 1, num_features, device=device),
        torch.ones(num_tasks, 1, num_features, device=device),
    )
    mix_BXD = torch.eye(num_features + NUM_CHANNELS, num_features, device=device).expand(num_tasks, -1, -1)
    return Sensors(zero, one, mix_BXD, zero, zero.long(), zero, zero, one, one, zero, zero)


def draw_sensors(draws: Draws, visited_BPF: Tensor, num_extra: int, num_bins: int) -> Sensors:
    """Draw observation maps for processes that visit the states given.

    Args:
        draws: one generator for all choices.
        visited_BPF: natural features of on-policy states.
        num_extra: columns beyond the natural features, the bins included.
        num_bins: columns of a one-hot code of one feature; 0 for none.
    """
    num_features = visited_BPF.shape[-1]
    natural = _natural_columns(draws, visited_BPF)
    parts = [natural]
    if num_bins:
        normal_BPF = (visited_BPF - natural.mean_B1F) * natural.inverse_B1F
        parts.append(_bin_columns(draws, normal_BPF, num_bins, natural))
    if num_extra > num_bins:
        parts.append(_extra_columns(draws, num_features, num_extra - num_bins, natural))
    return _shuffled(draws, _side_by_side(parts))


def _natural_columns(draws: Draws, visited_BPF: Tensor) -> Sensors:
    num_features, device = visited_BPF.shape[-1], visited_BPF.device
    spread_BF, mean_BF = torch.std_mean(visited_BPF, dim=1)
    varies_BF = spread_BF > 1e-5 * (1 + mean_BF.abs())
    inverse_BF = torch.where(varies_BF, 1 / spread_BF.clamp(min=1e-6), 0.0)
    plain = plain_sensors(draws.num_tasks, num_features, device)
    rotated_B11 = draws.chance(0.12, 1, 1)
    rotation_BFF = torch.where(rotated_B11, draws.rotation(num_features), plain.mix_BXD[:, :num_features])
    hidden_B1F = draws.chance(0.05, 1, 1) & draws.chance(0.2, 1, num_features)
    mix_BXD = torch.cat([rotation_BFF, plain.mix_BXD[:, num_features:]], dim=1) * ~hidden_B1F
    bends_B1F = draws.choice(BEND_WEIGHTS, 1, num_features) * draws.chance(0.3, 1, 1)
    faithful_B1F = torch.where(draws.chance(0.6, 1, num_features) & (bends_B1F >= WAVE), PLAIN, bends_B1F)
    noisy_B1F = draws.log_uniform(0.01, 0.4, 1, 1) * draws.chance(0.15, 1, 1) * draws.chance(0.8, 1, num_features)
    scale_B1F = draws.log_uniform(0.1, 10.0, 1, num_features)
    return replace(
        plain,
        mean_B1F=mean_BF.unsqueeze(1),
        inverse_B1F=inverse_BF.unsqueeze(1),
        mix_BXD=mix_BXD,
        bend_B1D=faithful_B1F,
        grain_B1D=draws.log_uniform(0.1, 1.0, 1, num_features),
        scale_B1D=scale_B1F,
        offset_B1D=draws.normal(1, num_features) * scale_B1F * draws.chance(0.5, 1, 1),
        noise_B1D=noisy_B1F * scale_B1F,
    )


def _extra_columns(draws: Draws, num_features: int, num_extra: int, natural: Sensors) -> Sensors:
    """Distractors, mixes, constants and copies of natural columns."""
    kind_B1E = draws.choice(EXTRA_WEIGHTS, 1, num_extra)
    channel_BKE = torch.nn.functional.one_hot(draws.integer(NUM_CHANNELS, num_extra), NUM_CHANNELS).mT.float()
    channel_BKE = channel_BKE * draws.sign(1, num_extra) + 0.3 * draws.normal(NUM_CHANNELS, num_extra)
    mix_BFE = draws.normal(num_features, num_extra) * draws.chance(0.5, num_features, num_extra) / num_features**0.5
    copied_BE = draws.integer(num_features, num_extra)
    copy = _columns(natural, copied_BE)
    is_mix = (kind_B1E == MIX) | (kind_B1E == BENT_MIX)
    is_copy, is_distractor = kind_B1E == COPY, kind_B1E == DISTRACTOR
    mix_BXE = torch.cat([torch.where(is_mix, mix_BFE, 0.0), torch.where(is_distractor, channel_BKE, 0.0)], dim=1)
    bend_B1E = torch.where(kind_B1E == BENT_MIX, 1 + draws.integer(FOLDED, 1, num_extra), PLAIN)
    scale_B1E = draws.log_uniform(0.1, 10.0, 1, num_extra)
    fresh = Sensors(
        mean_B1F=natural.mean_B1F,
        inverse_B1F=natural.inverse_B1F,
        mix_BXD=mix_BXE,
        bias_B1D=draws.normal(1, num_extra) * 0.5,
        bend_B1D=bend_B1E,
        low_B1D=torch.zeros_like(scale_B1E),
        high_B1D=torch.zeros_like(scale_B1E),
        grain_B1D=draws.log_uniform(0.1, 1.0, 1, num_extra),
        scale_B1D=scale_B1E,
        offset_B1D=torch.zeros_like(scale_B1E),
        noise_B1D=torch.zeros_like(scale_B1E),
    )
    chosen = {name: torch.where(is_copy, getattr(copy, name), getattr(fresh, name)) for name in COLUMN_FIELDS}
    return replace(fresh, **chosen)


def _bin_columns(draws: Draws, normal_BPF: Tensor, num_bins: int, natural: Sensors) -> Sensors:
    """A one-hot code: indicators of the intervals between quantiles of one feature per task."""
    num_tasks, _, num_features = normal_BPF.shape
    feature_B = draws.integer(num_features)
    chosen_BP = normal_BPF.gather(2, feature_B.view(-1, 1, 1).expand(-1, normal_BPF.shape[1], 1)).squeeze(-1)
    levels_L = torch.arange(1, num_bins, device=chosen_BP.device) / num_bins
    edges_BL = torch.quantile(chosen_BP[:, :: max(1, chosen_BP.shape[1] // 512)], levels_L, dim=1).mT
    low_BD = torch.nn.functional.pad(edges_BL, (1, 0), value=-1e9)
    high_BD = torch.nn.functional.pad(edges_BL, (0, 1), value=1e9)
    one_hot_BX = torch.nn.functional.one_hot(feature_B, num_features + NUM_CHANNELS).float()
    zero = torch.zeros(num_tasks, 1, num_bins, device=chosen_BP.device)
    return Sensors(
        mean_B1F=natural.mean_B1F,
        inverse_B1F=natural.inverse_B1F,
        mix_BXD=one_hot_BX.unsqueeze(-1).expand(-1, -1, num_bins),
        bias_B1D=zero,
        bend_B1D=torch.full_like(zero, INDICATOR, dtype=torch.int64),
        low_B1D=low_BD.unsqueeze(1),
        high_B1D=high_BD.unsqueeze(1),
        grain_B1D=zero + 1,
        scale_B1D=zero + 1,
        offset_B1D=zero,
        noise_B1D=zero,
    )


COLUMN_FIELDS = tuple(field.name for field in fields(Sensors))[2:]


def _columns(sensors: Sensors, index_BD: Tensor) -> Sensors:
    """The columns given by each task's own index."""
    picked = {}
    for name in COLUMN_FIELDS:
        values = getattr(sensors, name)
        picked[name] = values.gather(2, index_BD.unsqueeze(1).expand(-1, values.shape[1], -1))
    return replace(sensors, **picked)


def _side_by_side(parts: list[Sensors]) -> Sensors:
    joined = {name: torch.cat([getattr(part, name) for part in parts], dim=2) for name in COLUMN_FIELDS}
    return replace(parts[0], **joined)


def _shuffled(draws: Draws, sensors: Sensors) -> Sensors:
    order_BD = draws.uniform(0.0, 1.0, sensors.scale_B1D.shape[-1]).argsort(dim=-1)
    kept_B1 = draws.chance(0.3, 1)
    plain_D = torch.arange(order_BD.shape[1], device=order_BD.device)
    return _columns(sensors, torch.where(kept_B1, plain_D, order_BD))
