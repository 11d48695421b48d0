"""The table of all claims, in the order of the report."""

from __future__ import annotations

from icrl_gym.reproduction import (
    attention_race,
    boyan,
    convergence,
    emergence,
    large_prompts,
    limits,
    linear_ancestor,
    minimiser,
    prompt_length,
    regression,
    softmax_td,
    special_cases,
    state_action,
)
from icrl_gym.reproduction.claim import Claim

_IN_ORDER: tuple[Claim, ...] = (
    softmax_td.CLAIM,  # 1
    special_cases.CLAIM,  # 2
    convergence.CLAIM,  # 3
    limits.CLAIM,  # 4
    emergence.CLAIM,  # 5
    minimiser.CLAIM,  # 6
    boyan.CLAIM,  # 7
    large_prompts.CLAIM,  # 8
    regression.CLAIM,  # 9
    prompt_length.CLAIM,  # 10
    linear_ancestor.CLAIM,  # 11
    state_action.CLAIM,  # 12
    attention_race.CLAIM,  # 13
)
CLAIMS = {claim.id: claim for claim in _IN_ORDER}
