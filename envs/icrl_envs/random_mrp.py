"""A finite process with Dirichlet transitions."""

from __future__ import annotations

from typing import Any

import numpy as np

from icrl_envs.tabular import TabularMRP


class RandomMRP(TabularMRP):
    """A finite process in which every state may lead to every other.

    ## Description
    Each row of the transition matrix is a draw from the symmetric Dirichlet distribution: a small `concentration` makes
    a few successors likely, a large one makes all of them alike.

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
    `num_states` (default 10), `concentration` (1, above 0), `num_features` (4), `observation` ("id"),
    `termination_probability` (0), `mrp_seed` (0).

    ## Version History
    * v0: first version.
    """

    def __init__(self, num_states: int = 10, concentration: float = 1.0, **process: Any) -> None:
        if not concentration > 0.0:
            raise ValueError(f"concentration must be above 0, got {concentration}")
        self.concentration = concentration
        super().__init__(num_states, **process)

    def _draw_transitions(self, generator: np.random.Generator) -> np.ndarray:
        return generator.dirichlet(np.full(self.num_states, self.concentration), size=self.num_states)
