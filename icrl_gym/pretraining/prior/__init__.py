"""The prior: synthetic Markov reward processes to learn in-context evaluation from.

`sample_tasks` draws a batch of one family. Every task has a context as a policy would log it, queries from independent
episodes of the same process, and their true values.
"""

from icrl_gym.pretraining.prior.families import FAMILIES, Family
from icrl_gym.pretraining.prior.tasks import TaskBatch, sample_tasks

__all__ = ["FAMILIES", "Family", "TaskBatch", "sample_tasks"]
