"""How far an in-context evaluation can be trusted: the networks that answered, support of the queries, warnings."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from gymnasium import spaces

from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.compiled import Member
from icrl_gym.evaluator.world.imagination import CompiledContext
from icrl_gym.observations import Observations, named_leaves

THIN_SUPPORT = 0.5  # sources; queries below it are named in the warnings


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """What the evaluator did, beside the values.

    Attributes:
        support: (Q,) effective number of sources per query, share-weighted over the members: sources counted with
            weight exp(-distance^2 / 2) in kernel widths (inner-product kernel: 1 / sum K^2). Near 0 the estimate is
            the prompt's constant, not evidence. Of a policy that did not act: mean over its actions, where a source
            counts as much as its action is like them.
        warnings: sentences on what to be careful about; empty when all is well.
        mixture: what answered, the context under the network or in its world.
    """

    support: np.ndarray
    warnings: tuple[str, ...]
    mixture: CompiledContext = field(repr=False)

    @property
    def members(self) -> tuple[Member, ...]:
        """The heads that answered: share, setting, fell_back, and certificates (None with landmarks)."""
        return self.mixture.members

    @property
    def fell_back(self) -> bool:
        """Whether the safe averager took over in any member."""
        return self.mixture.fell_back


def query_warnings(
    prompt: Prompt,
    trajectory: Trajectory,
    observations: Observations,
    values_Q: np.ndarray,
    support_Q: np.ndarray,
    of_another: bool = False,
) -> list[str]:
    """Sentences on what to be careful about at these queries.

    Args:
        prompt, trajectory: the context.
        observations: the queries.
        values_Q, support_Q: what was read there.
        of_another: whether the values are of a policy that did not act, so that support is that of its actions.
    """
    warnings = []
    thin = int((support_Q < THIN_SUPPORT).sum())
    if thin:
        where = "lie off the context's support"
        if of_another:
            where = "lie where the log holds few actions like the policy's"
        warnings.append(f"{thin} of {len(support_Q)} queries {where}: expect the context's constant")
    unseen = _unseen_ids(trajectory, observations)
    if unseen:
        warnings.append(f"{unseen} of {len(support_Q)} queries hold an id that the context never visited")
    low, high = possible_values(prompt)
    slack = 1e-9 * (high - low)
    outside = int(((values_Q > high + slack) | (values_Q < low - slack)).sum())
    if outside:
        warnings.append(
            f"{outside} of {len(support_Q)} values lie outside what rewards like the context's can add up to"
        )
    return warnings


def possible_values(prompt: Prompt) -> tuple[float, float]:
    """Least and largest sum of rewards like the context's; an episode may also end at once, hence 0 in between."""
    least, largest = prompt.reward_range
    low, high = min(least, 0.0), max(largest, 0.0)
    return float(low / (1 - prompt.gamma)), float(high / (1 - prompt.gamma))


def _unseen_ids(trajectory: Trajectory, observations: Observations) -> int:
    if not isinstance(trajectory.observation_space, spaces.Discrete):
        return 0
    (_, ids) = next(named_leaves(observations, "observations"))
    return int((~np.isin(ids, trajectory.observations)).sum())
