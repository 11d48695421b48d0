"""`ValueEstimates` of a compiled context, from what was read of it."""

from __future__ import annotations

import numpy as np

from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.compiled import Reading
from icrl_gym.evaluator.diagnostics import Diagnostics, possible_values, query_warnings
from icrl_gym.evaluator.world.imagination import CompiledContext
from icrl_gym.observations import Observations
from icrl_gym.values import ValueEstimates


def estimates_of(
    compiled: CompiledContext,
    trajectory: Trajectory,
    observations: Observations,
    features_QD: np.ndarray,
    found: Reading,
    *,
    notes: tuple[str, ...] = (),
    of_another: bool = False,
) -> ValueEstimates:
    """The estimates of a compiled context.

    Args:
        compiled: the context that was read.
        trajectory: its transitions.
        observations, features_QD: the queries.
        found: what was read there.
        notes: warnings on the policy, which come first.
        of_another: whether the values are of a policy that did not act.
    """
    prompt, values_Q = compiled.prompt, found.by_layer_LQ[-1]
    about_queries = query_warnings(prompt, trajectory, observations, values_Q, found.support_Q, of_another)
    warnings = (*notes, *compiled.warnings, *prompt.feature_map.notes, *about_queries)
    return ValueEstimates(
        values=values_Q,
        observations=observations,
        estimand=prompt.estimand,
        stderr=found.stderr_Q,
        by_layer=found.by_layer_LQ,
        diagnostics=Diagnostics(found.support_Q, warnings, compiled),
        bounds=possible_values(prompt),
        attribute=lambda: compiled.attribution(features_QD),
    )
