"""Pretraining of the mixture's error bars on the synthetic prior.

    prior --sample_tasks--> tasks --examples--> shards (heads solved at their dials, statistics, truth)
    shards --training--> SpreadHead --checkpoint--> <name>.safetensors + card
    shards --ablation--> the error bars beside their untrained rivals, a table (scripts/ablate_pretraining.py)

Solving the heads is nearly all of the work and does not depend on the network, so it is done once per task and kept;
training then takes seconds.
"""

from icrl_gym.pretraining.run import pretrain
from icrl_gym.pretraining.shards import Examples, load_shards, make_shard
from icrl_gym.pretraining.training import TrainingState, train

__all__ = ["Examples", "TrainingState", "load_shards", "make_shard", "pretrain", "train"]
