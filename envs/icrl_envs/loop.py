"""A ring of states with random shortcuts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from icrl_envs.tabular import TabularMRP


class Loop(TabularMRP):
    """A ring in which every state leads to the next one and, through random shortcuts, to some others.

    ## Description
    State i always has an edge to i + 1 (the last to 0). Every other edge, to itself included, is drawn with a weight
    U(0, 1) and exists where the weight is above `threshold`; the edge of the ring has a weight of its own, U(0, 1). A
    state leaves along its edges in proportion to their weights. `threshold=1` is the bare ring, `threshold=0` a dense
    process. After the loops of Wang, Blaser, Daneshmand and Zhang (arXiv 2405.13861); the details are this project's.

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
    `num_states` (default 10, at least 2), `threshold` (0.8, in [0, 1]), `num_features` (4), `observation` ("id"),
    `termination_probability` (0), `mrp_seed` (0).

    ## Version History
    * v0: first version.
    """

    minimum_states: ClassVar[int] = 2

    def __init__(self, num_states: int = 10, threshold: float = 0.8, **process: Any) -> None:
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        self.threshold = threshold
        super().__init__(num_states, **process)

    def _draw_transitions(self, generator: np.random.Generator) -> np.ndarray:
        weights = generator.uniform(0.0, 1.0, (self.num_states, self.num_states))
        here = np.arange(self.num_states)
        exists = weights > self.threshold
        exists[here, (here + 1) % self.num_states] = True
        kept = np.where(exists, weights, 0.0)
        return kept / kept.sum(axis=1, keepdims=True)
