"""The pretrained mixture: tied softmax-attention heads at their equilibrium, gated by what the prompt looks like.

    Prompt --statistics--> Gate --> shares of the heads, free level, pseudo-terminations
    Prompt, Setting of each head --compile_prompt--> values --mixed by the shares--> ValueEstimates

With the gate shut (shares on the first head, level and pseudo-terminations at the setting's own) it is the constructed
evaluator; with one head, Theorem 1's setting say, it is that network.
"""

from icrl_gym.generalist.checkpoint import (
    Card,
    CheckpointError,
    available_checkpoints,
    bundled_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from icrl_gym.generalist.gate import Gate, Gates, SpreadHead, gated
from icrl_gym.generalist.heads import HEADS
from icrl_gym.generalist.mixture import CompiledMixture, Generalist
from icrl_gym.generalist.statistics import QUERY_STATISTICS, STATISTICS, prompt_statistics

__all__ = [
    "HEADS",
    "QUERY_STATISTICS",
    "STATISTICS",
    "Card",
    "CheckpointError",
    "CompiledMixture",
    "Gate",
    "Gates",
    "Generalist",
    "SpreadHead",
    "available_checkpoints",
    "bundled_checkpoint",
    "gated",
    "load_checkpoint",
    "prompt_statistics",
    "save_checkpoint",
]
