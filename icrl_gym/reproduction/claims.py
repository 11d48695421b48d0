"""The table of all claims, in the order of the report."""

from __future__ import annotations

from icrl_gym.reproduction import boyan, convergence, limits, linear_ancestor, softmax_td, special_cases
from icrl_gym.reproduction.claim import Claim

_IN_ORDER: tuple[Claim, ...] = (
    softmax_td.CLAIM,  # 1
    special_cases.CLAIM,  # 2
    convergence.CLAIM,  # 3
    limits.CLAIM,  # 4
    # 5 emergence
    # 6 minimiser
    boyan.CLAIM,  # 7
    # 8 large_prompts
    # 9 regression
    # 10 prompt_length
    linear_ancestor.CLAIM,  # 11
    # 12 state_action
    # 13 attention_race
)
CLAIMS = {claim.id: claim for claim in _IN_ORDER}
