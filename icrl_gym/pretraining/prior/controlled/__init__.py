"""Controlled systems in the prior: tasks with actions and a policy that can be asked.

`draw_controlled_task` draws one task, `generate` a sequence of independent ones.
"""

from icrl_gym.pretraining.prior.controlled.controllers import GaussianController, SoftmaxController
from icrl_gym.pretraining.prior.controlled.families import FAMILIES
from icrl_gym.pretraining.prior.controlled.tasks import ControlledTask, draw_controlled_task, generate

__all__ = ["FAMILIES", "ControlledTask", "GaussianController", "SoftmaxController", "draw_controlled_task", "generate"]
