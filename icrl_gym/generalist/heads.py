"""The heads of the shipped mixture: settings of the tied network that differ in width, trace and relevance.

The first one is the constructed evaluator. The others were chosen on the synthetic validation set and CartPole-v1,
Acrobot-v1 and Pendulum-v1 (docs/generalist.md); each one is an ordinary `Setting`.
"""

from __future__ import annotations

from icrl_gym.model import Setting

HEADS: tuple[Setting, ...] = (
    Setting(),
    Setting(bandwidth=0.8),
    Setting(bandwidth=1.2, forgetting=1e-5),
    Setting(trace_decay=0.9, forgetting=1e-3),
    Setting(relevance="whitened"),
    Setting(relevance="returns"),
)
