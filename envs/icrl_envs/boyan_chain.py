"""Boyan's chain with random probabilities, rewards and features."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from icrl_envs.tabular import TabularMRP


class BoyanChain(TabularMRP):
    """A chain that is walked in steps of one or two, and from its end thrown back to a random place.

    ## Description
    State i leads to i + 1 with probability u_i and to i + 2 with probability 1 - u_i, u_i ~ U(0.01, 0.99); the last
    state but one leads to the last, and the last to all states with random probabilities (normalised uniform weights).
    After Boyan (1999), with the randomisation of Wang, Blaser, Daneshmand and Zhang (arXiv 2405.13861).

    ## Action Space
    `Discrete(1)`: there is nothing to decide.

    ## Observation Space
    With `observation="id"` `Discrete(num_states)`, or one more (the terminal state) where episodes can end. With
    `observation="features"` `Box(-1, 1, (num_features,), float64)`.

    ## Rewards
    A fixed number per state left, drawn from U(-1, 1).

    ## Starting State
    Uniform.

    ## Episode End
    Every step terminates with `termination_probability` (default 0). The registered id truncates after 1,000 steps.

    ## Arguments
    `num_states` (default 10, at least 3), `num_features` (4), `observation` ("id"), `termination_probability` (0),
    `mrp_seed` (0).

    ## Version History
    * v0: first version.
    """

    minimum_states: ClassVar[int] = 3

    def _draw_transitions(self, generator: np.random.Generator) -> np.ndarray:
        size = self.num_states
        one_step = generator.uniform(0.01, 0.99, size - 2)
        matrix = np.zeros((size, size))
        chain = np.arange(size - 2)
        matrix[chain, chain + 1] = one_step
        matrix[chain, chain + 2] = 1 - one_step
        matrix[size - 2, size - 1] = 1.0
        weights = generator.uniform(0.0, 1.0, size)
        matrix[size - 1] = weights / weights.sum()
        return matrix
