"""Pretraining of the mixture's networks on the synthetic prior.

    prior --sample_tasks--> tasks --examples--> shards (heads solved at the corners of their gates, statistics, truth)
    shards --training--> Gate, SpreadHead --checkpoint--> <name>.safetensors + card
    shards --ablation--> gates with one thing changed, a table (scripts/ablate_pretraining.py)

Solving the heads is nearly all of the work and does not depend on the networks, so it is done once per task and kept;
training then takes seconds a run, and ablations cost next to nothing.
"""

from icrl_gym.pretraining.run import pretrain
from icrl_gym.pretraining.shards import Examples, load_shards, make_shard
from icrl_gym.pretraining.training import LOSSES, TrainingState, train

__all__ = ["LOSSES", "Examples", "TrainingState", "load_shards", "make_shard", "pretrain", "train"]
